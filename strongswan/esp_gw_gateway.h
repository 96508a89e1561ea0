/* SPDX-License-Identifier: GPL-2.0-or-later
   The gateway as charon's kernel: SAs and policies of both, kept the same over a session.

   Every function takes its turn: what charon's threads ask for reaches the gateway in one order. */
#ifndef ESP_GW_GATEWAY_H_
#define ESP_GW_GATEWAY_H_

#include "esp_gw_control.h"
#include "esp_gw_policies.h"
#include "esp_gw_sa.h"

#include <threading/condvar.h>
#include <threading/mutex.h>

/** Of the protocol of an owner's session. The second one releases no SPI that was reserved. */
#define ESP_GW_VERSION 3
/** The first version that has numbers of SAs. */
#define ESP_GW_NUMBERS 2

typedef struct {
    mutex_t *mutex;
    /** a session began, or the plugin ends */
    condvar_t *changed;
    /** the owner's session, NULL while there is none */
    esp_gw_control_t *session;
    /** milliseconds of the monotonic clock */
    uint64_t lost_at;
    bool closing;
    /** charon ends: what its policies close stays closed in the gateway */
    bool leaving;
    /** from OpenSession: the version of the protocol, and names of suites */
    int version;
    json_t *suites;
    /** esp_gw_sa_t by themselves: direction, SPI and number */
    hashtable_t *sas;
    esp_gw_policies_t *policies;
    uint32_t last_serial;
} esp_gw_gateway_t;

esp_gw_gateway_t *esp_gw_gateway_create(void);

status_t esp_gw_gateway_reserve_spi(esp_gw_gateway_t *this, uint32_t *spi);

status_t esp_gw_gateway_add_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id,
                               kernel_ipsec_add_sa_t *data);

status_t esp_gw_gateway_update_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id,
                                  kernel_ipsec_update_sa_t *data);

status_t esp_gw_gateway_query_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id,
                                 uint64_t *bytes, uint64_t *packets, time_t *time);

status_t esp_gw_gateway_remove_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id);

/** Only outbound policies are the gateway's; inbound ones say when a child is complete. */
status_t esp_gw_gateway_add_policy(esp_gw_gateway_t *this, kernel_ipsec_policy_id_t *id,
                                   kernel_ipsec_manage_policy_t *data);

status_t esp_gw_gateway_remove_policy(esp_gw_gateway_t *this, kernel_ipsec_policy_id_t *id,
                                      kernel_ipsec_manage_policy_t *data);

status_t esp_gw_gateway_flush_sas(esp_gw_gateway_t *this);

status_t esp_gw_gateway_flush_policies(esp_gw_gateway_t *this);

/**
 * A session has begun, and `answer` is what OpenSession answered: removes from the gateway what
 * charon hasn't, installs policies, and lets SAs that are gone expire.
 */
void esp_gw_gateway_begin(esp_gw_gateway_t *this, esp_gw_control_t *session, json_t *answer);

/** The session's socket for IKE messages and its port; -1 and words if the gateway has none. */
int esp_gw_gateway_ike_socket(esp_gw_gateway_t *this, uint16_t *port, char *words);

/** The session has ended; it is closed here. */
void esp_gw_gateway_end(esp_gw_gateway_t *this);

/**
 * charon ends: from now on a policy that it removes stays in the gateway, without its SA. What it
 * protects is closed until charon's next start.
 */
void esp_gw_gateway_leave_policies(esp_gw_gateway_t *this);

/** Who waits for a session gives up. */
void esp_gw_gateway_close(esp_gw_gateway_t *this);

/** Passes an event of Watch to charon; false if others got lost, and a new watch has to tell. */
bool esp_gw_gateway_event(esp_gw_gateway_t *this, json_t *event);

void esp_gw_gateway_destroy(esp_gw_gateway_t *this);

#endif
