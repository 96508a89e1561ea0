/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_sync.h"

#include "esp_gw_child.h"

#include <daemon.h>

/** Milliseconds after a session's end for which charon's requests wait for the next one. */
#define PATIENCE 5000
/** Tries to install a child while sessions end. */
#define TRIES 3

static u_int sa_hash(const void *key)
{
    const esp_gw_sa_t *sa = key;

    return chunk_hash(chunk_from_thing(sa->spi)) + sa->inbound;
}

static bool sa_equals(const void *a, const void *b)
{
    const esp_gw_sa_t *one = a, *other = b;

    return one->spi == other->spi && one->inbound == other->inbound &&
           one->number == other->number;
}

esp_gw_gateway_t *esp_gw_gateway_create(void)
{
    esp_gw_gateway_t *this;

    INIT(this,
        .mutex = mutex_create(MUTEX_TYPE_DEFAULT),
        .changed = condvar_create(CONDVAR_TYPE_DEFAULT),
        .sas = hashtable_create(sa_hash, sa_equals, 64),
        .policies = esp_gw_policies_create(),
        .lost_at = esp_gw_now(),
    );
    return this;
}

/** Waits for a session, not longer than it takes to restart the gateway. */
static bool await_session(esp_gw_gateway_t *this)
{
    while (!this->session && !this->closing) {
        uint64_t waited = esp_gw_now() - this->lost_at;

        if (waited >= PATIENCE)
            return FALSE;
        this->changed->timed_wait(this->changed, this->mutex, PATIENCE - waited);
    }
    return this->session != NULL;
}

static bool has_ends(esp_gw_sa_t *sa, kernel_ipsec_sa_id_t *id)
{
    return sa && sa->dst->ip_equals(sa->dst, id->dst) && sa->src->ip_equals(sa->src, id->src);
}

/** The SA of charon's name for it, which has no direction: the addresses tell it. */
static esp_gw_sa_t *named(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id)
{
    esp_gw_sa_t *sa = esp_gw_find_sa(this, TRUE, id->spi, 0);

    if (!has_ends(sa, id))
        sa = esp_gw_find_outbound(this, id->spi, id->dst);
    return has_ends(sa, id) ? sa : NULL;
}

status_t esp_gw_gateway_reserve_spi(esp_gw_gateway_t *this, uint32_t *spi)
{
    char words[ESP_GW_WORDS];
    json_t *answer = NULL;
    esp_gw_outcome_t outcome;

    this->mutex->lock(this->mutex);
    await_session(this);
    outcome = esp_gw_call(this, "ReserveSpi", json_object(), &answer, words);
    this->mutex->unlock(this->mutex);
    if (outcome != ESP_GW_DONE) {
        DBG1(DBG_KNL, "esp_gw: no SPI: %s", words);
        return FAILED;
    }
    *spi = htonl(json_integer_value(json_object_get(answer, "spi")));
    json_decref(answer);
    return *spi ? SUCCESS : FAILED;
}

/** An outbound SPI is the peer's choice, and another peer may make the same. */
static bool is_taken(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id, bool inbound)
{
    if (inbound || this->version < ESP_GW_NUMBERS)
        return esp_gw_find_sa(this, inbound, id->spi, 0) != NULL;
    return esp_gw_find_outbound(this, id->spi, id->dst) != NULL;
}

status_t esp_gw_gateway_add_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id,
                               kernel_ipsec_add_sa_t *data)
{
    char words[ESP_GW_WORDS], label[ESP_GW_LABEL];
    status_t status = FAILED;
    esp_gw_sa_t *sa = NULL;

    esp_gw_child_label(id->spi, data->inbound, label);
    this->mutex->lock(this->mutex);
    if (!esp_gw_child_has_policies())
        snprintf(words, sizeof words, "nothing would go into it: leave policies = no out");
    else if (is_taken(this, id, data->inbound))
        snprintf(words, sizeof words, "its SPI is in use");
    else
        sa = esp_gw_sa_create(id, data, this->suites, words);
    if (sa) {
        sa->child = esp_gw_child_installing();
        sa->serial = ++this->last_serial;
        if (esp_gw_find_sa(this, sa->inbound, sa->spi, 0))
            esp_gw_sa_set_number(sa, sa->serial);
        snprintf(sa->label, sizeof sa->label, "%s", label);
        esp_gw_child_describe(sa->object);
        this->sas->put(this->sas, sa, sa);
        status = SUCCESS;
    }
    this->mutex->unlock(this->mutex);
    if (status != SUCCESS)
        DBG1(DBG_KNL, "esp_gw: CHILD_SA %s is refused: %s", label, words);
    return status;
}

/** The inbound SA that waits for the same child as an outbound one, or the other way round. */
static esp_gw_sa_t *waiting_partner(esp_gw_gateway_t *this, esp_gw_sa_t *sa)
{
    enumerator_t *enumerator = this->sas->create_enumerator(this->sas);
    esp_gw_sa_t *other, *found = NULL;
    const void *key;

    while (sa->child && !found && enumerator->enumerate(enumerator, &key, &other))
        if (!other->installed && other->child == sa->child && other->inbound != sa->inbound)
            found = other;
    enumerator->destroy(enumerator);
    return found;
}

/** Installs SAs of a child, one of them perhaps NULL, with the policies that use the outbound. */
static status_t install(esp_gw_gateway_t *this, esp_gw_sa_t *in, esp_gw_sa_t *out)
{
    char words[ESP_GW_WORDS];
    esp_gw_outcome_t outcome = ESP_GW_UNSENT;
    int tries;

    for (tries = 0; tries < TRIES && esp_gw_is_unanswered(outcome); tries++) {
        await_session(this);
        outcome = esp_gw_install(this, in, out, words);
    }
    if (outcome == ESP_GW_DONE)
        return SUCCESS;
    DBG1(DBG_KNL, "esp_gw: CHILD_SA %s could not be installed: %s", (out ?: in)->label, words);
    return FAILED;
}

/** An inbound policy: the last one of a rekeyed child, whose outbound SA comes later. */
static status_t add_inbound(esp_gw_gateway_t *this, kernel_ipsec_manage_policy_t *data)
{
    esp_gw_sa_t *sa = esp_gw_find_sa(this, TRUE, data->sa->esp.spi, 0);

    if (!sa || sa->installed || ++sa->policies < data->sa->policy_count ||
        waiting_partner(this, sa))
        return SUCCESS;
    return install(this, sa, NULL);
}

/** The SA that a use of an outbound policy is by, NULL for none. */
static esp_gw_sa_t *sa_of_use(esp_gw_gateway_t *this, kernel_ipsec_manage_policy_t *data)
{
    uint32_t spi = data->type == POLICY_IPSEC ? data->sa->esp.spi : 0;

    return spi ? esp_gw_find_outbound(this, spi, data->dst) : NULL;
}

static status_t add_outbound(esp_gw_gateway_t *this, kernel_ipsec_policy_id_t *id,
                             kernel_ipsec_manage_policy_t *data, const char *label)
{
    char words[ESP_GW_WORDS];
    esp_gw_sa_t *sa = sa_of_use(this, data);
    uint32_t number = sa ? sa->number : 0;
    esp_gw_policy_t *policy = esp_gw_policies_add(this->policies, id, data, number, label, words);

    if (!policy) {
        DBG1(DBG_KNL, "esp_gw: a policy of %s is refused: %s", label, words);
        return FAILED;
    }
    if (sa && !sa->installed) {
        if (++sa->policies < data->sa->policy_count)
            return SUCCESS;
        return install(this, waiting_partner(this, sa), sa);
    }
    await_session(this);
    switch (esp_gw_sync_policy(this, policy, words)) {
        case ESP_GW_DONE:
            return SUCCESS;
        case ESP_GW_LOST:
        case ESP_GW_UNSENT:
            DBG1(DBG_KNL, "esp_gw: a policy of %s waits for the gateway: %s", label, words);
            return SUCCESS;
        default:
            DBG1(DBG_KNL, "esp_gw: a policy of %s is refused: %s", label, words);
            esp_gw_policies_remove_use(this->policies, id, data, number);
            esp_gw_sync_policy(this, policy, words);
            return FAILED;
    }
}

static const char *unsupported(kernel_ipsec_policy_id_t *id)
{
    if (id->mark.value)
        return "esp_gw has no marks: leave mark_in and mark_out out";
    if (id->if_id)
        return "esp_gw has no interface IDs: leave if_id_in and if_id_out out";
    if (id->interface)
        return "esp_gw has no policies for one interface: leave interface out";
    if (id->label)
        return "esp_gw has no security labels: leave label out";
    return NULL;
}

status_t esp_gw_gateway_add_policy(esp_gw_gateway_t *this, kernel_ipsec_policy_id_t *id,
                                   kernel_ipsec_manage_policy_t *data)
{
    const char *reason = unsupported(id);
    char label[ESP_GW_LABEL];
    status_t status = SUCCESS;

    if (id->dir == POLICY_FWD)
        return SUCCESS;
    esp_gw_child_label(data->sa->esp.spi, id->dir == POLICY_IN, label);
    if (reason) {
        DBG1(DBG_KNL, "esp_gw: a policy of %s is refused: %s", label, reason);
        return FAILED;
    }
    this->mutex->lock(this->mutex);
    if (id->dir == POLICY_OUT)
        status = add_outbound(this, id, data, label);
    else if (data->type == POLICY_IPSEC)
        status = add_inbound(this, data);
    this->mutex->unlock(this->mutex);
    return status;
}

status_t esp_gw_gateway_remove_policy(esp_gw_gateway_t *this, kernel_ipsec_policy_id_t *id,
                                      kernel_ipsec_manage_policy_t *data)
{
    char words[ESP_GW_WORDS];
    status_t status = SUCCESS;
    esp_gw_policy_t *policy;
    esp_gw_sa_t *sa;

    if (id->dir != POLICY_OUT)
        return SUCCESS;
    this->mutex->lock(this->mutex);
    await_session(this);
    sa = sa_of_use(this, data);
    policy = esp_gw_policies_remove_use(this->policies, id, data, sa ? sa->number : 0);
    if (!policy) {
        status = NOT_FOUND;
    } else if (__atomic_load_n(&this->leaving, __ATOMIC_ACQUIRE)) {
        if (!esp_gw_policy_first(policy))
            esp_gw_policies_forget(this->policies, policy);
    } else if (esp_gw_sync_policy(this, policy, words) == ESP_GW_REFUSED) {
        DBG1(DBG_KNL, "esp_gw: a policy could not be changed: %s", words);
        status = FAILED;
    }
    this->mutex->unlock(this->mutex);
    return status;
}

/** Moves an SA; charon rekeys instead if that doesn't do. */
static status_t move(esp_gw_gateway_t *this, esp_gw_sa_t *sa, host_t *src, host_t *dst,
                     bool encap)
{
    host_t *old_src = sa->src, *old_dst = sa->dst;
    bool old_encap = sa->encap;
    char words[ESP_GW_WORDS];
    esp_gw_outcome_t outcome = ESP_GW_DONE;

    sa->src = src->clone(src);
    sa->dst = dst->clone(dst);
    sa->encap = encap;
    if (sa->installed)
        outcome = esp_gw_call(this, "UpdateSa", esp_gw_sa_update(sa), NULL, words);
    else
        json_object_update_new(sa->object, esp_gw_sa_update(sa));
    if (outcome == ESP_GW_REFUSED || outcome == ESP_GW_NOT_FOUND) {
        DBG1(DBG_KNL, "esp_gw: %s could not be moved: %s", sa->label, words);
        sa->src->destroy(sa->src);
        sa->dst->destroy(sa->dst);
        sa->src = old_src;
        sa->dst = old_dst;
        sa->encap = old_encap;
        return NOT_SUPPORTED;
    }
    sa->moved = esp_gw_is_unanswered(outcome);
    old_src->destroy(old_src);
    old_dst->destroy(old_dst);
    return SUCCESS;
}

/** True if another outbound SA has the SPI at an address: charon would not tell one from the other. */
static bool is_used_at(esp_gw_gateway_t *this, esp_gw_sa_t *sa, host_t *dst)
{
    esp_gw_sa_t *other = sa->inbound ? NULL : esp_gw_find_outbound(this, sa->spi, dst);

    return other && other != sa;
}

status_t esp_gw_gateway_update_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id,
                                  kernel_ipsec_update_sa_t *data)
{
    bool moves = !id->src->ip_equals(id->src, data->new_src) ||
                 !id->dst->ip_equals(id->dst, data->new_dst);
    status_t status = NOT_SUPPORTED;
    esp_gw_sa_t *sa;

    this->mutex->lock(this->mutex);
    await_session(this);
    sa = named(this, id);
    if (!sa)
        status = NOT_FOUND;
    else if (!is_used_at(this, sa, data->new_dst) && (!moves || !sa->names_end))
        status = move(this, sa, data->new_src, data->new_dst, data->new_encap);
    this->mutex->unlock(this->mutex);
    return status;
}

status_t esp_gw_gateway_query_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id,
                                 uint64_t *bytes, uint64_t *packets, time_t *time)
{
    char words[ESP_GW_WORDS];
    json_t *answer = NULL, *found, *last_use;
    esp_gw_outcome_t outcome = ESP_GW_NOT_FOUND;
    esp_gw_sa_t *sa;

    this->mutex->lock(this->mutex);
    await_session(this);
    sa = named(this, id);
    if (sa && sa->installed && !sa->lost)
        outcome = esp_gw_call(this, "QuerySas", json_pack("{s:[o]}", "sas", esp_gw_sa_name(sa)),
                              &answer, words);
    this->mutex->unlock(this->mutex);
    found = json_array_get(json_object_get(answer, "sas"), 0);
    if (outcome == ESP_GW_DONE && found) {
        *bytes = json_integer_value(json_object_get(found, "bytes"));
        *packets = json_integer_value(json_object_get(found, "packets"));
        last_use = json_object_get(found, "last_use_s");
        *time = json_is_number(last_use) ? time_monotonic(NULL) - (time_t)json_number_value(last_use)
                                         : 0;
    }
    json_decref(answer);
    return found ? SUCCESS : NOT_FOUND;
}

status_t esp_gw_gateway_remove_sa(esp_gw_gateway_t *this, kernel_ipsec_sa_id_t *id)
{
    status_t status = SUCCESS;
    esp_gw_sa_t *sa;

    this->mutex->lock(this->mutex);
    await_session(this);
    sa = named(this, id);
    if (sa) {
        esp_gw_remove_sa(this, sa);
    } else {
        status = NOT_FOUND;
        /* The peer's SPI may be the same as one that is reserved here for another child. */
        if (charon->kernel->get_interface(charon->kernel, id->dst, NULL))
            esp_gw_release_spi(this, id->spi);
    }
    this->mutex->unlock(this->mutex);
    return status;
}

status_t esp_gw_gateway_flush_sas(esp_gw_gateway_t *this)
{
    enumerator_t *enumerator;
    linked_list_t *all = linked_list_create();
    const void *key;
    esp_gw_sa_t *sa;

    this->mutex->lock(this->mutex);
    await_session(this);
    enumerator = this->sas->create_enumerator(this->sas);
    while (enumerator->enumerate(enumerator, &key, &sa))
        all->insert_last(all, sa);
    enumerator->destroy(enumerator);
    while (all->remove_first(all, (void **)&sa) == SUCCESS)
        esp_gw_remove_sa(this, sa);
    this->mutex->unlock(this->mutex);
    all->destroy(all);
    return SUCCESS;
}

status_t esp_gw_gateway_flush_policies(esp_gw_gateway_t *this)
{
    char words[ESP_GW_WORDS];
    enumerator_t *enumerator;
    linked_list_t *all = linked_list_create();
    esp_gw_policy_t *policy;
    esp_gw_use_t *use;
    const void *key;

    this->mutex->lock(this->mutex);
    await_session(this);
    enumerator = this->policies->by_key->create_enumerator(this->policies->by_key);
    while (enumerator->enumerate(enumerator, &key, &policy))
        all->insert_last(all, policy);
    enumerator->destroy(enumerator);
    while (all->remove_first(all, (void **)&policy) == SUCCESS) {
        while (policy->uses->remove_first(policy->uses, (void **)&use) == SUCCESS)
            free(use);
        esp_gw_sync_policy(this, policy, words);
    }
    this->mutex->unlock(this->mutex);
    all->destroy(all);
    return SUCCESS;
}

void esp_gw_gateway_leave_policies(esp_gw_gateway_t *this)
{
    /* Without the mutex: the whole bus waits for a listener. */
    __atomic_store_n(&this->leaving, TRUE, __ATOMIC_RELEASE);
}

void esp_gw_gateway_close(esp_gw_gateway_t *this)
{
    this->mutex->lock(this->mutex);
    this->closing = TRUE;
    this->changed->broadcast(this->changed);
    this->mutex->unlock(this->mutex);
}

static void destroy_sa(void *sa, const void *key)
{
    esp_gw_sa_destroy(sa);
}

void esp_gw_gateway_destroy(esp_gw_gateway_t *this)
{
    this->sas->destroy_function(this->sas, destroy_sa);
    esp_gw_policies_destroy(this->policies);
    json_decref(this->suites);
    this->changed->destroy(this->changed);
    this->mutex->destroy(this->mutex);
    free(this);
}
