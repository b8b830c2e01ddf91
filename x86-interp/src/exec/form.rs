//! Operand sizes of instruction forms, and the choice of a handler by size.

use iced_x86::{Code, OpCodeOperandKind as Kind};

use super::{Row, Traits};
use crate::insn::Plain;

/// One handler for each of the operand sizes 8, 16, 32 and 64 bits.
pub(crate) type BySize = [Plain; 4];

/// A generic handler (`f::<W>`, or `f::<W, X>` with a second argument) for all four sizes.
macro_rules! sized {
    ($f:ident) => {
        [$f::<u8>, $f::<u16>, $f::<u32>, $f::<u64>]
    };
    ($f:ident, $x:tt) => {
        [$f::<u8, $x>, $f::<u16, $x>, $f::<u32, $x>, $f::<u64, $x>]
    };
}
pub(crate) use sized;

/// A handler with a condition code as its last parameter, for all sixteen codes.
macro_rules! conditions {
    ($f:ident $(, $t:ty)?) => {
        [
            $f::<$($t,)? 0>, $f::<$($t,)? 1>, $f::<$($t,)? 2>, $f::<$($t,)? 3>,
            $f::<$($t,)? 4>, $f::<$($t,)? 5>, $f::<$($t,)? 6>, $f::<$($t,)? 7>,
            $f::<$($t,)? 8>, $f::<$($t,)? 9>, $f::<$($t,)? 10>, $f::<$($t,)? 11>,
            $f::<$($t,)? 12>, $f::<$($t,)? 13>, $f::<$($t,)? 14>, $f::<$($t,)? 15>,
        ]
    };
}
pub(crate) use conditions;

/// The row of an instruction that falls through to the next one.
pub(crate) fn plain(plain: Plain) -> Option<Row> {
    let traits = Traits::empty();
    Some(Row { plain, traits })
}

/// The row of an instruction behind which a block ends.
pub(crate) fn ending(plain: Plain) -> Option<Row> {
    let traits = Traits::ENDS_BLOCK;
    Some(Row { plain, traits })
}

/// The row of the handler that fits the size of operand `n` of `code`.
pub(crate) fn by_operand(code: Code, n: u32, handlers: BySize) -> Option<Row> {
    let index = operand_bytes(code, n)?.checked_ilog2()?;
    plain(*handlers.get(index as usize)?)
}

/// The row of the handler that fits the effective operand size: 16, 32 or 64 bits.
pub(crate) fn by_operand_size(code: Code, handlers: [Plain; 3]) -> Option<Row> {
    plain(match code.op_code().operand_size() {
        16 => handlers[0],
        32 => handlers[1],
        64 => handlers[2],
        _ => return None,
    })
}

/// Returns the size of operand `n` of `code` in bytes: a general-purpose register or memory.
pub(crate) fn operand_bytes(code: Code, n: u32) -> Option<usize> {
    Some(match code.op_code().op_kind(n) {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode | Kind::al | Kind::cl => 1,
        Kind::r16_or_mem
        | Kind::r16_reg
        | Kind::r16_reg_mem
        | Kind::r16_rm
        | Kind::r16_opcode
        | Kind::ax
        | Kind::dx => 2,
        Kind::r32_or_mem
        | Kind::r32_reg
        | Kind::r32_reg_mem
        | Kind::r32_rm
        | Kind::r32_opcode
        | Kind::r32_vvvv
        | Kind::eax => 4,
        Kind::r64_or_mem
        | Kind::r64_reg
        | Kind::r64_reg_mem
        | Kind::r64_rm
        | Kind::r64_opcode
        | Kind::r64_vvvv
        | Kind::rax => 8,
        Kind::mem
        | Kind::mem_offs
        | Kind::seg_rSI
        | Kind::es_rDI
        | Kind::seg_rBX_al
        | Kind::seg_rDI => code.op_code().memory_size().size(),
        _ => return None,
    })
}
