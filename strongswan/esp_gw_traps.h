/* SPDX-License-Identifier: GPL-2.0-or-later
   Names of traps, for people: charon doesn't say them when it installs their policies. */
#ifndef ESP_GW_TRAPS_H_
#define ESP_GW_TRAPS_H_

#include "esp_gw_gateway.h"

#include <sa/child_sa.h>

/** A trap has been installed: its policies get its names some moments later. */
void esp_gw_traps_name(esp_gw_gateway_t *gateway, child_sa_t *trap);

#endif
