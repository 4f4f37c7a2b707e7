//! A kernel and what it was told to hold, in any plane.

use super::view;
use fairlead_agent::kernel::Kernel;
use fairlead_agent::plan::{Desired, NodeFacts, Plane, Style, compile};
use fairlead_proto::v1::{Endpoint, ServiceItem};

/// Services with their endpoints.
pub type Services = [(ServiceItem, Vec<Endpoint>)];

/// A kernel and what it was told to hold.
pub struct Programmed<P: Plane> {
    /// The kernel.
    pub kernel: Box<dyn Kernel<P>>,
    /// What it should hold.
    pub desired: Desired<P>,
}

impl<P: Plane> Programmed<P> {
    /// From what the kernel holds, as at an agent's start.
    pub fn start(kernel: impl Kernel<P> + 'static, facts: NodeFacts, services: &Services) -> Self {
        let desired = compile(&view(services), &facts);
        let mut plane = Self { kernel: Box::new(kernel), desired };
        plane.whole();
        plane.kernel.execute(&P::strays(&plane.desired)).unwrap();
        plane
    }

    /// Reads the kernel and changes what differs.
    pub fn whole(&mut self) {
        let observed = self.kernel.observe().unwrap();
        P::adopt(&mut self.desired, &observed);
        self.kernel.execute(&P::diff(&observed, &self.desired, Style::Edit)).unwrap();
        self.holds();
    }

    /// By the changes alone, as at a new view.
    pub fn step(&mut self, services: &Services) -> Vec<P::Op> {
        let ops = self.change(services);
        self.holds();
        ops
    }

    /// The same, without a look at the kernel after it.
    pub fn change(&mut self, services: &Services) -> Vec<P::Op> {
        let step = self.desired.update_all(&view(services));
        assert!(step.complete, "services are all that changed");
        self.kernel.execute(&step.ops).unwrap();
        step.ops
    }

    /// The kernel holds what is desired.
    pub fn holds(&self) {
        let ops = P::diff(&self.kernel.observe().unwrap(), &self.desired, Style::Edit);
        assert!(ops.is_empty(), "differs:\n{}", ops.iter().map(|op| format!("{op}\n")).collect::<String>());
    }
}
