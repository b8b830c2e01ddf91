//! Random descriptor tables and random selectors: nothing panics, and what faults has changed
//! nothing.

use proptest::prelude::*;
use vmx_model::arch::{Cr4, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{CODE, GDT, IDT, OTHER_TSS, TARGET, TSS, World, sel};
use crate::fault::Fault;

/// What may be executed: instructions that look at descriptors, with AX, EBX and the stack random.
const INSTRUCTIONS: &[&[u8]] = &[
    &[0x8e, 0xd8],       // MOV DS, AX
    &[0x8e, 0xd0],       // MOV SS, AX
    &[0x8e, 0xe0],       // MOV FS, AX
    &[0x1f],             // POP DS
    &[0x17],             // POP SS
    &[0xc4, 0x0b],       // LES ECX, [EBX]
    &[0x0f, 0xb2, 0x0b], // LSS ECX, [EBX]
    &[0x0f, 0x00, 0xd0], // LLDT AX
    &[0x0f, 0x00, 0xd8], // LTR AX
    &[0x0f, 0x02, 0xc8], // LAR ECX, EAX
    &[0x0f, 0x03, 0xc8], // LSL ECX, EAX
    &[0x0f, 0x00, 0xe0], // VERR AX
    &[0x0f, 0x00, 0xe8], // VERW AX
    &[0xff, 0x2b],       // JMP FAR [EBX]
    &[0xff, 0x1b],       // CALL FAR [EBX]
    &[0x66, 0xff, 0x1b], // CALL FAR [EBX], 16 bits
    &[0xcb],             // RETF
    &[0xca, 8, 0],       // RETF 8
    &[0xcf],             // IRET
    &[0x66, 0xcf],       // IRET, 16 bits
    &[0x48, 0xcf],       // IRETQ (DEC EAX; IRET)
    &[0xcd, 0x21],       // INT 21H
    &[0xcd, 0x08],       // INT 8
    &[0xf1],             // INT1
    &[0x0f, 0x34],       // SYSENTER
    &[0x0f, 0x35],       // SYSEXIT
    &[0x0f, 0x05],       // SYSCALL
    &[0x0f, 0x07],       // SYSRET
];

#[derive(Clone, Debug)]
struct Scene {
    mode: u8,
    instruction: usize,
    gdt: Vec<u64>,
    idt: Vec<u64>,
    tss: Vec<u8>,
    limits: [u16; 3],
    selector: u16,
    stack: [u32; 8],
    flags: u64,
}

fn scene() -> impl Strategy<Value = Scene> {
    let table = |n| prop::collection::vec(any::<u64>(), n);
    (
        (0..6_u8, 0..INSTRUCTIONS.len(), any::<u16>(), any::<u64>()),
        (
            table(48),
            table(64),
            prop::collection::vec(any::<u8>(), 104),
        ),
        (any::<[u16; 3]>(), prop::array::uniform8(0..0x180_u32)),
    )
        .prop_map(
            |((mode, instruction, selector, flags), (gdt, idt, tss), (limits, stack))| Scene {
                mode,
                instruction,
                gdt,
                idt,
                tss,
                limits,
                selector,
                stack,
                flags,
            },
        )
}

fn world_of(scene: &Scene) -> World {
    let code = INSTRUCTIONS[scene.instruction];
    let mut world = match scene.mode {
        0 | 1 => World::protected(3 * scene.mode, code),
        2 | 3 => World::long(3 * (scene.mode - 2), code),
        4 => World::real(code),
        _ => World::virtual_8086(scene.flags >> 12 & 3, code),
    };
    // Some descriptors stay good, so that more than the first check is reached.
    for (n, descriptor) in scene.gdt.iter().enumerate() {
        if descriptor >> 24 & 3 != 0 {
            world.write(GDT + 8 * n as u64, &descriptor.to_le_bytes());
        }
    }
    for (n, gate) in scene.idt.iter().enumerate() {
        world.write(IDT + 8 * n as u64, &gate.to_le_bytes());
    }
    for at in [TSS, OTHER_TSS] {
        world.write(at, &scene.tss);
    }
    let state = &mut world.cpu.state;
    state.gdtr.limit = scene.limits[0] & 0x3ff;
    state.idtr.limit = scene.limits[1] & 0x3ff;
    state.segment_mut(SegmentRegister::Tr).limit = u32::from(scene.limits[2] & 0xff);
    state.sysenter_cs = u64::from(scene.selector);
    state.cr4 = Cr4::from_bits_retain(u64::from(scene.selector >> 14));
    world.cpu.gpr[0] = u64::from(scene.selector) & 0x1ff;
    world.cpu.gpr[3] = 0x6000;
    world.write_doubleword(0x6000, TARGET as u32);
    world.write_word(0x6004, scene.selector & 0x1ff);
    let top = world.cpu.gpr[4] - 32;
    world.cpu.gpr[4] = top;
    for (n, value) in scene.stack.iter().enumerate() {
        world.write_doubleword(top + 4 * n as u64, *value);
    }
    world.set_flags(Rflags::from_bits_retain(scene.flags & 0x4ed5));
    world
}

/// Whether a fault at this place may have changed the state: it is the new task's.
fn is_in_new_task(world: &World, before: u16) -> bool {
    world.selector(SegmentRegister::Tr) != before
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_fault_changes_nothing(scene in scene()) {
        let mut world = world_of(&scene);
        let before = (world.cpu.arch_state(), world.cpu.general_registers());
        let tr = world.selector(SegmentRegister::Tr);
        if let Err(Fault::Exception(_)) = world.cpu.execute_plain()
            && !is_in_new_task(&world, tr)
        {
            let after = (world.cpu.arch_state(), world.cpu.general_registers());
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn random_tables_end_in_a_stop(scene in scene()) {
        let mut world = world_of(&scene);
        let _ = world.cpu.run(50);
        prop_assert!(world.cpu.cpl() <= 3);
        prop_assert!(world.cpu.retired() <= 50);
    }

    #[test]
    fn every_exception_ends_in_a_handler_or_in_shutdown(
        scene in scene(),
        vector in 0..32_u8,
        code in prop::option::of(any::<u16>()),
    ) {
        let mut world = world_of(&scene);
        let error_code = code.map(u32::from);
        let exception = Exception { vector, error_code, payload: 0 };
        let result = world.cpu.raise(exception);
        prop_assert!(matches!(result, Ok(()) | Err(Fault::Stop)), "{:?}", result);
        prop_assert_eq!(world.cpu.delivering, None);
    }
}

#[test]
fn the_scenes_reach_success_too() {
    let mut world = World::protected(0, INSTRUCTIONS[13]);
    world.cpu.gpr[3] = 0x6000;
    world.write_doubleword(0x6000, TARGET as u32);
    world.write_word(0x6004, sel::CODE0);
    world.execute().expect("a good jump");
    assert_ne!(world.cpu.state.rip, CODE);
}
