/* A plugin of qemu's (7.2, API version 1; docs/devel/tcg-plugins.rst): counts the instructions that
 * a program of one thread executes on aarch64, and of them those for AES and for GHASH, and prints
 * the two counts on standard error at its end. */

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct tb;
struct insn;
enum { NO_REGISTERS = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct tb *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
extern struct insn *qemu_plugin_tb_get_insn(const struct tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct insn *);

int qemu_plugin_version = 1;

static uint64_t instructions, crypto;

static int is_crypto(uint32_t code)
{
    /* AESE, AESD, AESMC, AESIMC; PMULL and PMULL2 of 64 by 64 bits. */
    return (code & 0xffffcc00) == 0x4e284800 || (code & 0xbfe0fc00) == 0x0ee0e000;
}

static void executed(unsigned cpu, void *counts)
{
    (void)cpu;
    instructions += (uintptr_t)counts >> 32;
    crypto += (uintptr_t)counts & 0xffffffff;
}

static void translated(plugin_id id, struct tb *tb)
{
    (void)id;
    uint64_t all = qemu_plugin_tb_n_insns(tb), of_crypto = 0;
    for (size_t at = 0; at < all; at++) {
        uint32_t code;
        memcpy(&code, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, at)), sizeof code);
        of_crypto += is_crypto(code);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, NO_REGISTERS, (void *)(all << 32 | of_crypto));
}

static void ended(plugin_id id, void *nothing)
{
    (void)id;
    (void)nothing;
    fprintf(stderr, "%" PRIu64 " instructions, %" PRIu64 " crypto\n", instructions, crypto);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
