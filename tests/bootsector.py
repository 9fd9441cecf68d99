# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of one sector, for tests of what is around a guest: they boot from the disk in a moment, use
it through the firmware's own virtio driver, and speak on the serial port.
"""
from helpers import run

# What QEMU needs for one: the memory is the caller's, an exit code n ends it with 2 n + 1. It is not
# -nographic: that makes the firmware use the serial port, too, and what it has queued for it would
# come out between our own characters.
QEMU = ["qemu-system-x86_64", "-accel", "tcg", "-m", "64M", "-nodefaults", "-display", "none",
        "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]

FRAME = r"""
        .code16
start:  cli
        xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %ss
        mov $0x7c00, %sp
        sti
BODY
halt:   hlt
        jmp halt
bad:    mov $wrong - start + 0x7c00, %si
        call say
        jmp halt
disk:   mov $0x7e00, %bx            # %ax: 0x0201 reads, 0x0301 writes; %cx: the sector's number
        mov $0x0080, %dx            # head 0 of the first disk
        int $0x13
        jc bad
        ret
say:    mov $0x3f8, %dx
1:      lodsb
        test %al, %al
        jz 2f
        outb %al, %dx
        jmp 1b
2:      ret
good:   .asciz "DISK-OK\n"
wrong:  .asciz "DISK-BAD\n"
        .org 510
        .word 0xaa55
"""

# Copies sector 2 (the firmware counts from 1) to sector 3, says so, and ends with code 0x10 if
# sector 2 begins with an E.
COPY = r"""
        mov $0x0201, %ax
        mov $2, %cx
        call disk
        mov $0x0301, %ax
        mov $3, %cx
        call disk
        mov $good - start + 0x7c00, %si
        call say
        cmpb $'E', 0x7e00
        jne halt
        mov $0x10, %al
        outb %al, $0xf4
"""

# Writes a counter to sector 3 and reads it back, for ever, and says so each time.
COUNT = r"""
        xor %bp, %bp
again:  inc %bp
        mov %bp, 0x7e00
        mov $0x0301, %ax
        mov $3, %cx
        call disk
        movw $0, 0x7e00
        mov $0x0201, %ax
        mov $3, %cx
        call disk
        cmp %bp, 0x7e00
        jne bad
        mov $good - start + 0x7c00, %si
        call say
        jmp again
"""


def assemble(body, directory):
    """The 512 bytes of a boot sector that does BODY."""
    (directory / "boot.s").write_text(FRAME.replace("BODY", body))
    run("as", "--32", "-o", directory / "boot.o", directory / "boot.s")
    run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-e", "start",
        "-o", directory / "boot.bin", directory / "boot.o")
    code = (directory / "boot.bin").read_bytes()
    assert len(code) == 512
    return code
