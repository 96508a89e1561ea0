/* SPDX-License-Identifier: GPL-2.0-or-later
   Single steps on the gateway, for who holds its mutex. Each fails at once without a session. */
#ifndef ESP_GW_SYNC_H_
#define ESP_GW_SYNC_H_

#include "esp_gw_gateway.h"

/** Milliseconds of the monotonic clock. */
uint64_t esp_gw_now(void);

/** Calls a method, as esp_gw_control_call(); a session without an answer has ended. */
esp_gw_outcome_t esp_gw_call(esp_gw_gateway_t *this, const char *method, json_t *parameters,
                             json_t **answer, char *words);

/** An SA by its name on the control socket; the number of an inbound one is 0. */
esp_gw_sa_t *esp_gw_find_sa(esp_gw_gateway_t *this, bool inbound, uint32_t spi, uint32_t number);

/** The outbound SA of an SPI to a peer. */
esp_gw_sa_t *esp_gw_find_outbound(esp_gw_gateway_t *this, uint32_t spi, host_t *peer);

/**
 * Installs the SAs that are given and not installed yet, with the policies that use `out`, in one
 * step. Either SA may be NULL. A key goes out once: it is wiped if there is no answer.
 */
esp_gw_outcome_t esp_gw_install(esp_gw_gateway_t *this, esp_gw_sa_t *in, esp_gw_sa_t *out,
                                char *words);

/** The gateway has an SA: wipes its key and starts its timers. */
void esp_gw_mark_installed(esp_gw_gateway_t *this, esp_gw_sa_t *sa);

/** The policy as the gateway should have it. Not for one without uses. */
json_t *esp_gw_wanted(esp_gw_gateway_t *this, esp_gw_policy_t *policy);

/** Gives the gateway what has become of a policy; forgets one that has no uses left. */
esp_gw_outcome_t esp_gw_sync_policy(esp_gw_gateway_t *this, esp_gw_policy_t *policy, char *words);

/** Ends the reservation of an inbound SPI whose child has failed. */
void esp_gw_release_spi(esp_gw_gateway_t *this, uint32_t spi);

/** Removes an SA here and there, or the reservation of its SPI. */
void esp_gw_remove_sa(esp_gw_gateway_t *this, esp_gw_sa_t *sa);

#endif
