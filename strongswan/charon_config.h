/* SPDX-License-Identifier: GPL-2.0-or-later
   Stands for the config.h of charon's build: what Debian's configure finds that the headers ask
   for. A difference moves members of structures, or lets an inline function stay undefined. */
#define CONFIG_H_INCLUDED
#define HAVE_CLOCK_GETTIME 1
#define HAVE_CONDATTR_CLOCK_MONOTONIC 1
#define HAVE_EXPLICIT_BZERO 1
#define HAVE_GCC_ATOMIC_OPERATIONS 1
#define HAVE_INT128 1
#define HAVE_SIGWAITINFO 1
#define HAVE_STDBOOL_H 1
#define HAVE_SYS_PARAM_H 1
/* The mediation extension: adds members to daemon_t and ike_sa_t. */
#define ME 1
