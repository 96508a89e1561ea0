/* Preloaded into a program on aarch64: tells it of a processor without the Crypto Extensions, which
 * qemu doesn't have and the Raspberry Pi 3 and 4 are. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/auxv.h>

unsigned long getauxval(unsigned long type)
{
    unsigned long (*original)(unsigned long) = dlsym(RTLD_NEXT, "getauxval");
    unsigned long value = original(type);
    if (type == AT_HWCAP)
        value &= ~(unsigned long)(HWCAP_AES | HWCAP_PMULL | HWCAP_SHA1 | HWCAP_SHA2);
    return value;
}
