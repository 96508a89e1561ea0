/* SPDX-License-Identifier: GPL-2.0-or-later
   The policies that charon has installed, and what becomes of them in the gateway.

   charon installs one selector several times: as a trap, for a child, for the child that replaces
   it. The gateway has one policy for it, that of the use which comes first. */
#ifndef ESP_GW_POLICIES_H_
#define ESP_GW_POLICIES_H_

#include "esp_gw_sa.h"

#include <collections/hashtable.h>
#include <collections/linked_list.h>

/** charon's reason for a policy. */
typedef struct {
    policy_type_t type;
    /** smaller comes first; of equal ones, the younger */
    uint32_t priority;
    uint32_t reqid;
    /** of the outbound SA, in network order; 0 for none */
    uint32_t spi;
    /** of that SA, see esp_gw_sa_t */
    uint32_t number;
    /** charon's configuration has it, whatever becomes of SAs */
    bool trap;
    char label[ESP_GW_LABEL];
    /** name of the connection, empty if it is not known */
    char connection[ESP_GW_LABEL];
} esp_gw_use_t;

typedef struct {
    /** its name on the control socket */
    char id[16];
    /** the selector as text */
    char *key;
    json_t *selector;
    /** esp_gw_use_t, the first one counts */
    linked_list_t *uses;
    /** what the gateway has, NULL for nothing */
    json_t *sent;
} esp_gw_policy_t;

typedef struct {
    hashtable_t *by_key, *by_id;
    uint32_t last_id;
} esp_gw_policies_t;

esp_gw_policies_t *esp_gw_policies_create(void);

/** Adds a use, by the SA with a number; NULL and words if the selector can't be expressed. */
esp_gw_policy_t *esp_gw_policies_add(esp_gw_policies_t *this, kernel_ipsec_policy_id_t *id,
                                     kernel_ipsec_manage_policy_t *data, uint32_t number,
                                     const char *label, char *words);

/** Removes a use, of several alike that by the SA with a number; NULL if there is none. */
esp_gw_policy_t *esp_gw_policies_remove_use(esp_gw_policies_t *this, kernel_ipsec_policy_id_t *id,
                                            kernel_ipsec_manage_policy_t *data, uint32_t number);

/** The use that counts, NULL if there is none left. */
esp_gw_use_t *esp_gw_policy_first(esp_gw_policy_t *this);

/**
 * What a gateway that speaks a version of the protocol should have: a policy with an SA, or one that
 * holds. Not for one without uses.
 */
json_t *esp_gw_policy_object(esp_gw_policy_t *this, bool has_sa, int version);

/** Gives the trap of a reqid its names; true if the policy has that trap. */
bool esp_gw_policy_name_trap(esp_gw_policy_t *this, uint32_t reqid, const char *child,
                             const char *connection);

/** The gateway has `object`, which is taken, or nothing. */
void esp_gw_policy_sent(esp_gw_policy_t *this, json_t *object);

/** Forgets a policy that has no uses. */
void esp_gw_policies_forget(esp_gw_policies_t *this, esp_gw_policy_t *policy);

void esp_gw_policies_destroy(esp_gw_policies_t *this);

#endif
