/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_policies.h"

#include "esp_gw_child.h"
#include "esp_gw_control.h"
#include "esp_gw_selectors.h"

#include <library.h>
#include <stdio.h>
#include <string.h>

/** Ranks of selectors are smaller. */
#define CLASS 200000U

esp_gw_policies_t *esp_gw_policies_create(void)
{
    esp_gw_policies_t *this;

    INIT(this,
        .by_key = hashtable_create(hashtable_hash_str, hashtable_equals_str, 64),
        .by_id = hashtable_create(hashtable_hash_str, hashtable_equals_str, 64),
    );
    return this;
}

/** Smaller comes first: bypass, then protect, then the discard of last resort. */
static uint32_t priority_of(kernel_ipsec_policy_id_t *id, kernel_ipsec_manage_policy_t *data)
{
    uint32_t rank = esp_gw_selector_rank(id->src_ts, id->dst_ts);

    if (data->manual_prio)
        return data->manual_prio;
    switch (data->prio) {
        case POLICY_PRIORITY_PASS:
            return rank;
        case POLICY_PRIORITY_DEFAULT:
            return CLASS + rank;
        case POLICY_PRIORITY_ROUTED:
            return CLASS + rank + 1;
        default:
            return 2 * CLASS + rank;
    }
}

static esp_gw_policy_t *find(esp_gw_policies_t *this, kernel_ipsec_policy_id_t *id,
                             json_t **selector, char **key, char *words)
{
    *selector = esp_gw_selector(id->src_ts, id->dst_ts, words);
    if (!*selector)
        return NULL;
    *key = json_dumps(*selector, JSON_COMPACT);
    return this->by_key->get(this->by_key, *key);
}

/** In front of the first use that doesn't come before it. */
static void insert(linked_list_t *uses, esp_gw_use_t *use)
{
    enumerator_t *enumerator = uses->create_enumerator(uses);
    esp_gw_use_t *other;

    while (enumerator->enumerate(enumerator, &other))
        if (other->priority >= use->priority)
            break;
    uses->insert_before(uses, enumerator, use);
    enumerator->destroy(enumerator);
}

esp_gw_policy_t *esp_gw_policies_add(esp_gw_policies_t *this, kernel_ipsec_policy_id_t *id,
                                     kernel_ipsec_manage_policy_t *data, uint32_t number,
                                     const char *label, char *words)
{
    esp_gw_policy_t *policy;
    esp_gw_use_t *use;
    json_t *selector;
    char *key = NULL;

    policy = find(this, id, &selector, &key, words);
    if (!selector)
        return NULL;
    if (policy) {
        json_decref(selector);
        free(key);
    } else {
        INIT(policy, .key = key, .selector = selector, .uses = linked_list_create());
        snprintf(policy->id, sizeof policy->id, "p%u", ++this->last_id);
        this->by_key->put(this->by_key, policy->key, policy);
        this->by_id->put(this->by_id, policy->id, policy);
    }
    INIT(use,
        .type = data->type,
        .priority = priority_of(id, data),
        .reqid = data->sa->reqid,
        .spi = data->sa->esp.spi,
        .number = number,
        .trap = data->type == POLICY_IPSEC && data->prio == POLICY_PRIORITY_ROUTED,
    );
    snprintf(use->label, sizeof use->label, "%s", label);
    esp_gw_child_connection(use->connection);
    insert(policy->uses, use);
    return policy;
}

esp_gw_policy_t *esp_gw_policies_remove_use(esp_gw_policies_t *this, kernel_ipsec_policy_id_t *id,
                                            kernel_ipsec_manage_policy_t *data, uint32_t number)
{
    char words[ESP_GW_WORDS], *key = NULL;
    uint32_t priority = priority_of(id, data);
    enumerator_t *enumerator;
    esp_gw_policy_t *policy;
    esp_gw_use_t *use, *found = NULL;
    json_t *selector;

    policy = find(this, id, &selector, &key, words);
    json_decref(selector);
    free(key);
    if (!policy)
        return NULL;
    enumerator = policy->uses->create_enumerator(policy->uses);
    while (enumerator->enumerate(enumerator, &use)) {
        if (use->type == data->type && use->priority == priority &&
            use->reqid == data->sa->reqid && use->spi == data->sa->esp.spi &&
            (!found || use->number == number))
            found = use;
    }
    enumerator->destroy(enumerator);
    if (!found)
        return NULL;
    policy->uses->remove(policy->uses, found, NULL);
    free(found);
    return policy;
}

esp_gw_use_t *esp_gw_policy_first(esp_gw_policy_t *this)
{
    esp_gw_use_t *use = NULL;

    this->uses->get_first(this->uses, (void **)&use);
    return use;
}

static bool has_trap(esp_gw_policy_t *this)
{
    enumerator_t *enumerator = this->uses->create_enumerator(this->uses);
    esp_gw_use_t *use;
    bool found = FALSE;

    while (!found && enumerator->enumerate(enumerator, &use))
        found = use->trap;
    enumerator->destroy(enumerator);
    return found;
}

json_t *esp_gw_policy_object(esp_gw_policy_t *this, bool has_sa, int version)
{
    esp_gw_use_t *use = esp_gw_policy_first(this);
    const char *action = use->type == POLICY_PASS   ? "bypass"
                         : use->type == POLICY_DROP ? "discard"
                                                    : "protect";
    json_t *object;

    object = json_pack("{s:s, s:s, s:[O], s:I, s:o, s:s}", "id", this->id, "action", action,
                       "selectors", this->selector, "priority", (json_int_t)use->priority, "sa",
                       has_sa ? json_integer(ntohl(use->spi)) : json_null(), "child", use->label);
    if (version >= 2) {
        json_object_set_new(object, "trap", json_boolean(has_trap(this)));
        json_object_set_new(object, "connection", json_string(use->connection));
    }
    if (has_sa && use->number)
        json_object_set_new(object, "sa_number", json_integer(use->number));
    return object;
}

bool esp_gw_policy_name_trap(esp_gw_policy_t *this, uint32_t reqid, const char *child,
                             const char *connection)
{
    enumerator_t *enumerator = this->uses->create_enumerator(this->uses);
    esp_gw_use_t *use;
    bool found = FALSE;

    while (enumerator->enumerate(enumerator, &use)) {
        if (!use->trap || use->reqid != reqid)
            continue;
        snprintf(use->label, sizeof use->label, "%s", child);
        snprintf(use->connection, sizeof use->connection, "%s", connection);
        found = TRUE;
    }
    enumerator->destroy(enumerator);
    return found;
}

void esp_gw_policy_sent(esp_gw_policy_t *this, json_t *object)
{
    json_decref(this->sent);
    this->sent = object;
}

void esp_gw_policies_forget(esp_gw_policies_t *this, esp_gw_policy_t *policy)
{
    this->by_key->remove(this->by_key, policy->key);
    this->by_id->remove(this->by_id, policy->id);
    policy->uses->destroy_function(policy->uses, free);
    json_decref(policy->selector);
    json_decref(policy->sent);
    free(policy->key);
    free(policy);
}

void esp_gw_policies_destroy(esp_gw_policies_t *this)
{
    enumerator_t *enumerator;
    esp_gw_policy_t *policy;
    const char *key;
    bool found;

    do {
        enumerator = this->by_key->create_enumerator(this->by_key);
        found = enumerator->enumerate(enumerator, &key, &policy);
        enumerator->destroy(enumerator);
        if (found)
            esp_gw_policies_forget(this, policy);
    } while (found);
    this->by_key->destroy(this->by_key);
    this->by_id->destroy(this->by_id);
    free(this);
}
