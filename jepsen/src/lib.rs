//! Consistency tests from outside: real processes, real faults, checked histories. See README.md; empty until then.
