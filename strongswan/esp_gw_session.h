/* SPDX-License-Identifier: GPL-2.0-or-later
   The thread that keeps the owner's session, and reads the gateway's events. */
#ifndef ESP_GW_SESSION_H_
#define ESP_GW_SESSION_H_

#include "esp_gw_gateway.h"
#include "esp_gw_relay.h"

typedef struct esp_gw_session_t esp_gw_session_t;

/** Starts the thread; NULL if that fails. */
esp_gw_session_t *esp_gw_session_create(esp_gw_gateway_t *gateway, esp_gw_relay_t *relay,
                                        const char *path);

/** Ends session and thread; the gateway keeps what is in place. */
void esp_gw_session_destroy(esp_gw_session_t *this);

#endif
