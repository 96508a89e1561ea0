/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_sync.h"

#include <daemon.h>
#include <processing/jobs/callback_job.h>
#include <time.h>

uint64_t esp_gw_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

esp_gw_outcome_t esp_gw_call(esp_gw_gateway_t *this, const char *method, json_t *parameters,
                             json_t **answer, char *words)
{
    esp_gw_outcome_t outcome;

    if (!this->session) {
        json_decref(parameters);
        snprintf(words, ESP_GW_WORDS, "there is no session with the gateway");
        return ESP_GW_UNSENT;
    }
    outcome = esp_gw_control_call(this->session, method, parameters, answer, words);
    if (esp_gw_is_unanswered(outcome)) {
        /* Its thread sees the end, closes it, and begins the next one. */
        esp_gw_control_end(this->session);
        this->session = NULL;
        this->lost_at = esp_gw_now();
    }
    return outcome;
}

esp_gw_sa_t *esp_gw_find_sa(esp_gw_gateway_t *this, bool inbound, uint32_t spi, uint32_t number)
{
    esp_gw_sa_t wanted = {.inbound = inbound, .spi = spi, .number = number};

    return this->sas->get(this->sas, &wanted);
}

esp_gw_sa_t *esp_gw_find_outbound(esp_gw_gateway_t *this, uint32_t spi, host_t *peer)
{
    esp_gw_sa_t *first = esp_gw_find_sa(this, FALSE, spi, 0), *other, *found = NULL;
    enumerator_t *enumerator;
    const void *key;

    if (first && first->dst->ip_equals(first->dst, peer))
        return first;
    /* Two peers have chosen it, or none is there: neither happens often. */
    enumerator = this->sas->create_enumerator(this->sas);
    while (!found && enumerator->enumerate(enumerator, &key, &other))
        if (!other->inbound && other->spi == spi && other->dst->ip_equals(other->dst, peer))
            found = other;
    enumerator->destroy(enumerator);
    return found;
}

/** A timer of an SA. It may be gone when its time comes, and its SPI another's. */
typedef struct {
    esp_gw_gateway_t *gateway;
    uint32_t spi, number, serial;
    bool inbound, hard;
} timer_t_;

static job_requeue_t expire(timer_t_ *timer)
{
    esp_gw_gateway_t *this = timer->gateway;
    host_t *dst = NULL;
    esp_gw_sa_t *sa;

    this->mutex->lock(this->mutex);
    sa = esp_gw_find_sa(this, timer->inbound, timer->spi, timer->number);
    if (sa && sa->serial == timer->serial)
        dst = sa->dst->clone(sa->dst);
    this->mutex->unlock(this->mutex);
    if (dst) {
        charon->kernel->expire(charon->kernel, IPPROTO_ESP, timer->spi, dst, timer->hard);
        dst->destroy(dst);
    }
    return JOB_REQUEUE_NONE;
}

static void start_timer(esp_gw_gateway_t *this, esp_gw_sa_t *sa, uint64_t seconds, bool hard)
{
    timer_t_ *timer;

    if (!seconds)
        return;
    INIT(timer, .gateway = this, .spi = sa->spi, .number = sa->number, .serial = sa->serial,
         .inbound = sa->inbound, .hard = hard);
    lib->scheduler->schedule_job(
        lib->scheduler, (job_t *)callback_job_create((void *)expire, timer, free, NULL),
        min(seconds, (uint64_t)UINT32_MAX));
}

void esp_gw_mark_installed(esp_gw_gateway_t *this, esp_gw_sa_t *sa)
{
    esp_gw_sa_installed(sa);
    start_timer(this, sa, sa->soft_time, FALSE);
    start_timer(this, sa, sa->hard_time, TRUE);
}

static bool is_waiting(esp_gw_sa_t *sa)
{
    return sa && !sa->installed;
}

/** Adds an SA that is not installed yet to a list of objects. */
static void add_object(json_t *sas, esp_gw_sa_t *sa)
{
    if (is_waiting(sa))
        json_array_append_new(sas, esp_gw_sa_object(sa));
}

/** The key of an SA has gone out, and there was no answer. */
static bool is_told(esp_gw_sa_t *sa)
{
    return is_waiting(sa) && !sa->key.len;
}

/** What becomes of the policies that use an SA once it is in place, as far as it changes. */
static void add_policies(esp_gw_gateway_t *this, esp_gw_sa_t *out, linked_list_t *policies,
                         json_t *objects)
{
    enumerator_t *enumerator = this->policies->by_key->create_enumerator(this->policies->by_key);
    esp_gw_policy_t *policy;
    esp_gw_use_t *use;
    json_t *object;
    const void *key;

    while (out && enumerator->enumerate(enumerator, &key, &policy)) {
        use = esp_gw_policy_first(policy);
        if (!use || use->type != POLICY_IPSEC || use->spi != out->spi ||
            use->number != out->number)
            continue;
        object = esp_gw_policy_object(policy, TRUE, this->version);
        if (!json_equal(object, policy->sent)) {
            policies->insert_last(policies, policy);
            json_array_append(objects, object);
        }
        json_decref(object);
    }
    enumerator->destroy(enumerator);
}

esp_gw_outcome_t esp_gw_install(esp_gw_gateway_t *this, esp_gw_sa_t *in, esp_gw_sa_t *out,
                                char *words)
{
    esp_gw_outcome_t outcome = ESP_GW_DONE;
    linked_list_t *policies;
    esp_gw_policy_t *policy;
    json_t *sas, *objects;
    size_t i = 0;

    /* A gateway that has used a key and lost its records would use the same numbers again. */
    if (is_told(in) || is_told(out)) {
        snprintf(words, ESP_GW_WORDS, "its keys may be in use by a gateway that did not answer");
        return ESP_GW_REFUSED;
    }
    sas = json_array();
    objects = json_array();
    policies = linked_list_create();
    add_object(sas, in);
    add_object(sas, out);
    add_policies(this, out, policies, objects);
    /* Both may be in place: a session ended after the gateway had done what it didn't answer. */
    if (json_array_size(sas) || json_array_size(objects))
        outcome = esp_gw_call(this, "InstallChild",
                              json_pack("{s:O, s:O}", "sas", sas, "policies", objects), NULL,
                              words);
    esp_gw_wipe_keys(sas);
    json_decref(sas);
    if (outcome == ESP_GW_DONE) {
        if (is_waiting(in))
            esp_gw_mark_installed(this, in);
        if (is_waiting(out))
            esp_gw_mark_installed(this, out);
        while (policies->remove_first(policies, (void **)&policy) == SUCCESS)
            esp_gw_policy_sent(policy, json_incref(json_array_get(objects, i++)));
    } else if (outcome == ESP_GW_LOST) {
        if (is_waiting(in))
            chunk_clear(&in->key);
        if (is_waiting(out))
            chunk_clear(&out->key);
    }
    json_decref(objects);
    policies->destroy(policies);
    return outcome;
}

json_t *esp_gw_wanted(esp_gw_gateway_t *this, esp_gw_policy_t *policy)
{
    esp_gw_use_t *use = esp_gw_policy_first(policy);
    esp_gw_sa_t *sa = use->type == POLICY_IPSEC && use->spi
                          ? esp_gw_find_sa(this, FALSE, use->spi, use->number)
                          : NULL;

    return esp_gw_policy_object(policy, sa && sa->installed && !sa->lost, this->version);
}

esp_gw_outcome_t esp_gw_sync_policy(esp_gw_gateway_t *this, esp_gw_policy_t *policy, char *words)
{
    esp_gw_outcome_t outcome = ESP_GW_DONE;
    json_t *object;

    if (!esp_gw_policy_first(policy)) {
        if (policy->sent)
            outcome = esp_gw_call(this, "RemovePolicy", json_pack("{s:s}", "id", policy->id), NULL,
                                  words);
        esp_gw_policies_forget(this->policies, policy);
        return outcome;
    }
    object = esp_gw_wanted(this, policy);
    if (json_equal(object, policy->sent)) {
        json_decref(object);
        return ESP_GW_DONE;
    }
    outcome = esp_gw_call(this, "InstallChild",
                          json_pack("{s:[], s:[O]}", "sas", "policies", object), NULL, words);
    if (outcome == ESP_GW_DONE)
        esp_gw_policy_sent(policy, object);
    else
        json_decref(object);
    return outcome;
}

void esp_gw_release_spi(esp_gw_gateway_t *this, uint32_t spi)
{
    char words[ESP_GW_WORDS];

    /* Otherwise it ends by itself, some minutes later. */
    if (this->version >= ESP_GW_VERSION)
        esp_gw_call(this, "ReleaseSpi", json_pack("{s:I}", "spi", (json_int_t)ntohl(spi)), NULL,
                    words);
}

void esp_gw_remove_sa(esp_gw_gateway_t *this, esp_gw_sa_t *sa)
{
    char words[ESP_GW_WORDS];

    if (sa->installed && !sa->lost &&
        esp_gw_call(this, "RemoveSas", json_pack("{s:[o]}", "sas", esp_gw_sa_name(sa)), NULL,
                    words) == ESP_GW_REFUSED)
        DBG1(DBG_KNL, "esp_gw: an SA of %s could not be removed: %s", sa->label, words);
    if (sa->inbound && !sa->installed)
        esp_gw_release_spi(this, sa->spi);
    this->sas->remove(this->sas, sa);
    esp_gw_sa_destroy(sa);
}
