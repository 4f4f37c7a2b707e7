//! Protobuf's wire format: fields, one after another. Never reads past its bytes; never takes more work than there are bytes.
//! Groups (wire types 3 and 4), which Kubernetes never had, are errors.

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read<'a> {
    /// A varint.
    Number(u64),
    /// A length and that many bytes.
    Bytes(&'a [u8]),
    /// Four or eight bytes: none of our messages has such a field, so that they can only be skipped.
    Fixed,
}

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire<'a> {
    rest: &'a [u8],
}

const CUT: &str = "it is cut short";

impl<'a> Wire<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The number of the next field, and what it holds; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Read<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number != 0);
        let number = number.ok_or_else(|| format!("illegal tag {tag}"))?;
        let read = match tag & 7 {
            0 => Read::Number(self.varint()?),
            1 => self.take(8).map(|_| Read::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| CUT.to_owned())?;
                Read::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Read::Fixed)?,
            other => return Err(format!("illegal wire type {other}")),
        };
        Ok(Some((number, read)))
    }

    /// A number of seven bits a byte, the lowest first.
    pub(super) fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(CUT)?;
            self.rest = rest;
            if shift == 63 && *byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number has more than 64 bits".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CUT)?;
        self.rest = rest;
        Ok(taken)
    }
}
