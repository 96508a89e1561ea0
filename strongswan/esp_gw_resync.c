/* SPDX-License-Identifier: GPL-2.0-or-later
   What comes from the gateway by itself: its state when a session begins, and events. */
#include "esp_gw_selectors.h"
#include "esp_gw_sync.h"

#include <daemon.h>

/** Policies or SAs in one request, far below the 256 KiB of one. */
#define BATCH 200

static uint32_t spi_of(json_t *named)
{
    return htonl(json_integer_value(json_object_get(named, "spi")));
}

static uint32_t number_of(json_t *named)
{
    return json_integer_value(json_object_get(named, "number"));
}

static bool is_inbound(json_t *named)
{
    const char *direction = json_string_value(json_object_get(named, "direction"));

    return direction && streq(direction, "inbound");
}

/** An SA that was listed, in a request. */
static json_t *name_of(json_t *listed)
{
    json_t *name = json_pack("{s:O, s:O}", "direction", json_object_get(listed, "direction"), "spi",
                             json_object_get(listed, "spi"));

    if (number_of(listed))
        json_object_set(name, "number", json_object_get(listed, "number"));
    return name;
}

/** Compares SAs: returns names of those that the gateway alone has, and of those that expired. */
static json_t *compare_sas(esp_gw_gateway_t *this, json_t *listed)
{
    json_t *removed = json_array(), *entry;
    enumerator_t *enumerator = this->sas->create_enumerator(this->sas);
    esp_gw_sa_t *sa;
    const void *key;
    bool is_used;
    size_t i;

    while (enumerator->enumerate(enumerator, &key, &sa))
        sa->lost = sa->installed;
    enumerator->destroy(enumerator);
    json_array_foreach(listed, i, entry) {
        sa = esp_gw_find_sa(this, is_inbound(entry), spi_of(entry), number_of(entry));
        is_used = !json_is_true(json_object_get(entry, "expired"));
        if (!sa || !is_used)
            json_array_append_new(removed, name_of(entry));
        if (!sa)
            continue;
        if (!sa->installed)
            esp_gw_mark_installed(this, sa);
        sa->lost = !is_used;
    }
    return removed;
}

/** Installs a policy of a refused batch: one that is refused takes no other along. */
static void put_alone(esp_gw_gateway_t *this, esp_gw_policy_t *policy)
{
    char words[ESP_GW_WORDS];
    esp_gw_outcome_t outcome = esp_gw_sync_policy(this, policy, words);

    if (outcome != ESP_GW_DONE && !esp_gw_is_unanswered(outcome))
        DBG1(DBG_KNL, "esp_gw: policy %s of %s is refused: %s", policy->id,
             esp_gw_policy_first(policy)->label, words);
}

/** Installs a batch, and empties both lists. */
static void put_batch(esp_gw_gateway_t *this, linked_list_t *policies, json_t *objects)
{
    char words[ESP_GW_WORDS];
    esp_gw_outcome_t outcome = ESP_GW_DONE;
    esp_gw_policy_t *policy;
    size_t i = 0;

    if (json_array_size(objects))
        outcome = esp_gw_call(this, "InstallChild",
                              json_pack("{s:[], s:O}", "sas", "policies", objects), NULL, words);
    while (policies->remove_first(policies, (void **)&policy) == SUCCESS) {
        if (outcome == ESP_GW_DONE)
            esp_gw_policy_sent(policy, json_incref(json_array_get(objects, i++)));
        else if (!esp_gw_is_unanswered(outcome))
            put_alone(this, policy);
    }
    json_array_clear(objects);
}

static void put_policies(esp_gw_gateway_t *this)
{
    enumerator_t *enumerator = this->policies->by_key->create_enumerator(this->policies->by_key);
    linked_list_t *policies = linked_list_create();
    json_t *objects = json_array();
    esp_gw_policy_t *policy;
    const void *key;

    while (enumerator->enumerate(enumerator, &key, &policy)) {
        /* The gateway may have another one of that name, to be replaced or removed. */
        esp_gw_policy_sent(policy, json_null());
        policies->insert_last(policies, policy);
        json_array_append_new(objects, esp_gw_wanted(this, policy));
        if (json_array_size(objects) == BATCH)
            put_batch(this, policies, objects);
    }
    enumerator->destroy(enumerator);
    put_batch(this, policies, objects);
    policies->destroy(policies);
    json_decref(objects);
}

static void remove_foreign_policies(esp_gw_gateway_t *this, json_t *listed)
{
    char words[ESP_GW_WORDS];
    json_t *entry;
    size_t i;

    json_array_foreach(listed, i, entry) {
        const char *id = json_string_value(json_object_get(entry, "id"));

        if (id && !this->policies->by_id->get(this->policies->by_id, id))
            esp_gw_call(this, "RemovePolicy", json_pack("{s:s}", "id", id), NULL, words);
    }
}

static void remove_batch(esp_gw_gateway_t *this, json_t *names)
{
    char words[ESP_GW_WORDS];
    esp_gw_outcome_t outcome = ESP_GW_DONE;

    if (json_array_size(names))
        outcome = esp_gw_call(this, "RemoveSas", json_pack("{s:O}", "sas", names), NULL, words);
    if (outcome != ESP_GW_DONE && !esp_gw_is_unanswered(outcome))
        DBG1(DBG_KNL, "esp_gw: %zu SAs could not be removed: %s", json_array_size(names), words);
    json_array_clear(names);
}

static void remove_sas(esp_gw_gateway_t *this, json_t *names)
{
    json_t *batch = json_array(), *name;
    size_t i;

    json_array_foreach(names, i, name) {
        json_array_append(batch, name);
        if (json_array_size(batch) == BATCH)
            remove_batch(this, batch);
    }
    remove_batch(this, batch);
    json_decref(batch);
}

/** SAs that the gateway lost expire, and the children with them: their keys are gone. */
static void tell(esp_gw_gateway_t *this)
{
    enumerator_t *enumerator = this->sas->create_enumerator(this->sas);
    char words[ESP_GW_WORDS];
    esp_gw_sa_t *sa;
    const void *key;

    while (enumerator->enumerate(enumerator, &key, &sa)) {
        if (sa->lost) {
            DBG1(DBG_KNL, "esp_gw: the gateway has lost an SA of %s", sa->label);
            /* Queues a job. */
            charon->kernel->expire(charon->kernel, IPPROTO_ESP, sa->spi, sa->dst, TRUE);
        } else if (sa->moved && !esp_gw_is_unanswered(esp_gw_call(
                                    this, "UpdateSa", esp_gw_sa_update(sa), NULL, words))) {
            sa->moved = FALSE;
        }
    }
    enumerator->destroy(enumerator);
}

void esp_gw_gateway_begin(esp_gw_gateway_t *this, esp_gw_control_t *session, json_t *answer)
{
    json_t *removed;

    this->mutex->lock(this->mutex);
    this->session = session;
    this->version = json_integer_value(json_object_get(answer, "version"));
    if (this->version < ESP_GW_VERSION)
        DBG1(DBG_KNL, "esp_gw: the gateway is of an earlier version than this plugin: restart it");
    json_decref(this->suites);
    this->suites = json_incref(json_object_get(answer, "suites"));
    removed = compare_sas(this, json_object_get(answer, "sas"));
    put_policies(this);
    if (!__atomic_load_n(&this->leaving, __ATOMIC_ACQUIRE))
        remove_foreign_policies(this, json_object_get(answer, "policies"));
    remove_sas(this, removed);
    json_decref(removed);
    tell(this);
    this->changed->broadcast(this->changed);
    this->mutex->unlock(this->mutex);
}

int esp_gw_gateway_ike_socket(esp_gw_gateway_t *this, uint16_t *port, char *words)
{
    json_t *answer = NULL;
    int fd = -1;

    this->mutex->lock(this->mutex);
    if (esp_gw_call(this, "GetIkeSocket", json_object(), &answer, words) == ESP_GW_DONE)
        fd = esp_gw_control_take_fd(this->session);
    this->mutex->unlock(this->mutex);
    if (answer && fd < 0)
        snprintf(words, ESP_GW_WORDS, "an answer without a socket");
    *port = json_integer_value(json_object_get(answer, "port"));
    json_decref(answer);
    return fd;
}

void esp_gw_gateway_end(esp_gw_gateway_t *this)
{
    this->mutex->lock(this->mutex);
    if (this->session) {
        this->session = NULL;
        this->lost_at = esp_gw_now();
    }
    this->mutex->unlock(this->mutex);
}

static void acquire(esp_gw_gateway_t *this, json_t *event)
{
    const char *id = json_string_value(json_object_get(event, "policy"));
    kernel_acquire_data_t data = {};
    esp_gw_policy_t *policy = NULL;
    esp_gw_use_t *use = NULL;
    uint32_t reqid = 0;

    this->mutex->lock(this->mutex);
    if (id)
        policy = this->policies->by_id->get(this->policies->by_id, id);
    if (policy)
        use = esp_gw_policy_first(policy);
    if (use && use->type == POLICY_IPSEC)
        reqid = use->reqid;
    this->mutex->unlock(this->mutex);
    if (reqid && esp_gw_packet(event, &data.src, &data.dst)) {
        charon->kernel->acquire(charon->kernel, reqid, &data);
        data.src->destroy(data.src);
        data.dst->destroy(data.dst);
    }
}

/** The destination of an SA by which charon finds it; NULL if there is no such SA. */
static host_t *destination(esp_gw_gateway_t *this, json_t *event)
{
    esp_gw_sa_t *sa;
    host_t *dst = NULL;

    this->mutex->lock(this->mutex);
    sa = esp_gw_find_sa(this, is_inbound(event), spi_of(event), number_of(event));
    if (sa)
        dst = sa->dst->clone(sa->dst);
    this->mutex->unlock(this->mutex);
    return dst;
}

static void expired(esp_gw_gateway_t *this, json_t *event, bool hard)
{
    host_t *dst = destination(this, event);

    if (dst) {
        charon->kernel->expire(charon->kernel, IPPROTO_ESP, spi_of(event), dst, hard);
        dst->destroy(dst);
    }
}

static void moved(esp_gw_gateway_t *this, json_t *event)
{
    const char *address = json_string_value(json_object_get(event, "address"));
    uint16_t port = json_integer_value(json_object_get(event, "port"));
    host_t *remote = address ? host_create_from_string((char *)address, port) : NULL;
    host_t *dst = destination(this, event);

    if (remote && dst)
        charon->kernel->mapping(charon->kernel, IPPROTO_ESP, spi_of(event), dst, remote);
    DESTROY_IF(remote);
    DESTROY_IF(dst);
}

bool esp_gw_gateway_event(esp_gw_gateway_t *this, json_t *event)
{
    const char *name = json_string_value(json_object_get(event, "event"));

    if (!name)
        return TRUE;
    if (streq(name, "Acquire"))
        acquire(this, event);
    else if (streq(name, "SoftExpired"))
        expired(this, event, FALSE);
    else if (streq(name, "HardExpired"))
        expired(this, event, TRUE);
    else if (streq(name, "PeerAddressChanged"))
        moved(this, event);
    else if (streq(name, "Stopping"))
        DBG1(DBG_KNL, "esp_gw: the gateway stops");
    return !streq(name, "Lost");
}
