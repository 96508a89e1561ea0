/* SPDX-License-Identifier: GPL-2.0-or-later
   IKE messages that share a port with ESP: the gateway's end of that port is a datagram socket,
   there while a session is. */
#ifndef ESP_GW_RELAY_H_
#define ESP_GW_RELAY_H_

#include <networking/packet.h>
#include <stdbool.h>

typedef struct esp_gw_relay_t esp_gw_relay_t;

/** Without a socket; NULL if there is no file descriptor for it. */
esp_gw_relay_t *esp_gw_relay_create(void);

/** Takes the socket of a session, and the port that its messages have. */
void esp_gw_relay_attach(esp_gw_relay_t *this, int fd, uint16_t port);

/** The session has ended: messages are lost until the next one. */
void esp_gw_relay_detach(esp_gw_relay_t *this);

bool esp_gw_relay_is_attached(esp_gw_relay_t *this);

/** The gateway's port; charon's setting before the first session. */
uint16_t esp_gw_relay_port(esp_gw_relay_t *this);

/** Readable while a message waits, whatever socket it came by. */
int esp_gw_relay_fd(esp_gw_relay_t *this);

/** A message as charon expects it of that port, or NULL if none waits. */
packet_t *esp_gw_relay_receive(esp_gw_relay_t *this);

/** Sends a packet of that port; what isn't taken at once is lost, as on any way to the peer. */
void esp_gw_relay_send(esp_gw_relay_t *this, packet_t *packet);

void esp_gw_relay_destroy(esp_gw_relay_t *this);

#endif
