/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_traps.h"

#include "esp_gw_child.h"
#include "esp_gw_sync.h"

#include <daemon.h>
#include <processing/jobs/callback_job.h>
#include <stdio.h>

/** Looks for a trap, which charon lists once its policies are in place. */
#define TRIES 50
#define PAUSE 100

typedef struct {
    esp_gw_gateway_t *gateway;
    uint32_t reqid;
    int tries;
    char child[ESP_GW_LABEL], connection[ESP_GW_LABEL];
} trap_t;

/** The names of a trap in charon's list; false if it isn't there. */
static bool look_up(trap_t *this)
{
    enumerator_t *enumerator = charon->traps->create_enumerator(charon->traps);
    peer_cfg_t *peer;
    child_sa_t *trap;
    bool found = FALSE;

    while (!found && enumerator->enumerate(enumerator, &peer, &trap)) {
        if (trap->get_reqid(trap) != this->reqid)
            continue;
        snprintf(this->child, sizeof this->child, "%s", trap->get_name(trap));
        snprintf(this->connection, sizeof this->connection, "%s", peer->get_name(peer));
        esp_gw_child_make_printable(this->child);
        esp_gw_child_make_printable(this->connection);
        found = TRUE;
    }
    enumerator->destroy(enumerator);
    return found;
}

/** Names the policies of a trap, and gives the gateway those that nothing else has yet. */
static void put_names(trap_t *this)
{
    esp_gw_gateway_t *gateway = this->gateway;
    linked_list_t *named = linked_list_create();
    char words[ESP_GW_WORDS];
    enumerator_t *enumerator;
    esp_gw_policy_t *policy;
    const void *key;

    gateway->mutex->lock(gateway->mutex);
    enumerator = gateway->policies->by_key->create_enumerator(gateway->policies->by_key);
    while (enumerator->enumerate(enumerator, &key, &policy))
        if (esp_gw_policy_name_trap(policy, this->reqid, this->child, this->connection))
            named->insert_last(named, policy);
    enumerator->destroy(enumerator);
    /* Without a session the next one tells the names. */
    while (named->remove_first(named, (void **)&policy) == SUCCESS)
        esp_gw_sync_policy(gateway, policy, words);
    gateway->mutex->unlock(gateway->mutex);
    named->destroy(named);
}

static job_requeue_t name_trap(trap_t *this)
{
    if (look_up(this))
        put_names(this);
    else if (++this->tries < TRIES)
        return JOB_RESCHEDULE_MS(PAUSE);
    return JOB_REQUEUE_NONE;
}

void esp_gw_traps_name(esp_gw_gateway_t *gateway, child_sa_t *trap)
{
    trap_t *this;

    INIT(this, .gateway = gateway, .reqid = trap->get_reqid(trap));
    /* Not here: the bus waits, and charon's list of traps is locked. */
    lib->processor->queue_job(lib->processor,
                              (job_t *)callback_job_create((void *)name_trap, this, free, NULL));
}
