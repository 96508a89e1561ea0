/* SPDX-License-Identifier: GPL-2.0-or-later
   charon's socket: port 500 by sockets of its own, the port of ESP in UDP by the relay. */
#ifndef ESP_GW_SOCKET_H_
#define ESP_GW_SOCKET_H_

#include "esp_gw_relay.h"

#include <network/socket.h>

/** The name by which the library keeps the relay between backend and socket. */
#define ESP_GW_RELAY "esp-gw-relay"

/** For the relay that the backend has left in the library; NULL if there is none, or no port. */
socket_t *esp_gw_socket_create(void);

#endif
