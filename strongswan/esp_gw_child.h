/* SPDX-License-Identifier: GPL-2.0-or-later
   The CHILD_SA that the current thread installs: charon tells its backend of SAs and policies
   alone, and its bus of children. */
#ifndef ESP_GW_CHILD_H_
#define ESP_GW_CHILD_H_

#include <bus/listeners/listener.h>
#include <jansson.h>

/** Bytes of an identity, as text. */
#define ESP_GW_IDENTITY 256

/** For the bus: notes the child that a thread installs. */
listener_t *esp_gw_child_listener(void);

/** Unique id of the child that this thread installs, 0 for none. */
uint32_t esp_gw_child_installing(void);

/** False if the child that this thread installs has `policies = no`. */
bool esp_gw_child_has_policies(void);

/** Writes name and unique id of an SA's child, as "office{3}", into ESP_GW_LABEL bytes. */
void esp_gw_child_label(uint32_t spi, bool inbound, char *label);

/** Adds connection and peer, those of this thread's IKE_SA, to an SA's object, for people. */
void esp_gw_child_describe(json_t *object);

/** The name of the connection of the IKE_SA that the calling thread has, or nothing. */
const char *esp_gw_child_connection(char *connection);

/** Text of a peer is bytes, and may be cut inside a character. */
void esp_gw_child_make_printable(char *text);

#endif
