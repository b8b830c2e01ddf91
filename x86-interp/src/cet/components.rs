//! The state components of CET: what XRSTORS loads (SDM Vol. 1, "CET State").

use vmx_model::event::Exception;

use crate::{Cpu, Exec, msr};

/// The MSRs that the components of CET hold.
#[derive(Default)]
pub(crate) struct CetComponents {
    pub(crate) u_cet: u64,
    pub(crate) pl_ssp: [u64; 4],
}

impl CetComponents {
    pub(crate) fn of(cpu: &Cpu) -> Self {
        Self {
            u_cet: cpu.msrs.u_cet,
            pl_ssp: cpu.msrs.pl_ssp,
        }
    }

    /// Loads the MSRs: #GP(0) for a value that WRMSR refuses.
    pub(crate) fn load(&self, cpu: &mut Cpu) -> Exec {
        let is_valid = self.u_cet == 0 || msr::cet(cpu, self.u_cet);
        let are_valid = self
            .pl_ssp
            .iter()
            .all(|&p| msr::shadow_stack_pointer(cpu, p));
        if !is_valid || !are_valid {
            return Err(Exception::gp(0).into());
        }
        cpu.msrs.u_cet = self.u_cet;
        cpu.msrs.pl_ssp = self.pl_ssp;
        Ok(())
    }
}
