/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_sa.h"

#include "esp_gw_control.h"
#include "esp_gw_selectors.h"

#include <crypto/crypters/crypter.h>
#include <library.h>
#include <netinet/in.h>
#include <stdio.h>

/** Bytes of salt behind the key (RFC 4106 8.1, RFC 7634 2). */
#define SALT_LEN 4
#define MAX_KEY_LEN (32 + SALT_LEN)
/** Packets: the gateway's default, for its workers may reorder; and the largest window it has. */
#define MIN_WINDOW 4096U
#define MAX_WINDOW 8192U
#define WINDOW_STEP 64U
/** Seconds: charon's default, and the gateway's maximum. */
#define KEEPALIVE 20
#define MAX_KEEPALIVE 3600U

static bool suite_name(kernel_ipsec_add_sa_t *data, char *name, size_t size)
{
    int bits = ((int)data->enc_key.len - SALT_LEN) * 8, icv;

    switch (data->enc_alg) {
        case ENCR_AES_GCM_ICV8:
            icv = 8;
            break;
        case ENCR_AES_GCM_ICV12:
            icv = 12;
            break;
        case ENCR_AES_GCM_ICV16:
            icv = 16;
            break;
        case ENCR_NULL_AUTH_AES_GMAC:
            snprintf(name, size, "aes%dgmac", bits);
            return TRUE;
        case ENCR_CHACHA20_POLY1305:
            snprintf(name, size, "chacha20poly1305");
            return TRUE;
        default:
            return FALSE;
    }
    snprintf(name, size, "aes%dgcm%d", bits, icv);
    return TRUE;
}

static bool is_listed(json_t *suites, const char *name)
{
    json_t *suite;
    size_t i;

    json_array_foreach(suites, i, suite)
        if (streq(json_string_value(suite), name))
            return TRUE;
    return FALSE;
}

/** The first thing that esp_gw doesn't do for this SA, or NULL. */
static const char *unsupported(kernel_ipsec_sa_id_t *id, kernel_ipsec_add_sa_t *data)
{
    if (id->proto != IPPROTO_ESP)
        return "esp_gw carries ESP alone: no AH";
    if (data->mode != MODE_TUNNEL && data->mode != MODE_TRANSPORT)
        return "esp_gw has tunnel and transport mode alone";
    if (id->mark.value || data->mark.value)
        return "esp_gw has no marks: leave mark_in, mark_out, set_mark_in and set_mark_out out";
    if (id->if_id)
        return "esp_gw has no interface IDs: leave if_id_in and if_id_out out";
    if (data->interface)
        return "esp_gw has no policies for one interface: leave interface out";
    if (data->label)
        return "esp_gw has no security labels: leave label out";
    if (data->ipcomp != IPCOMP_NONE)
        return "esp_gw has no IPComp: leave ipcomp out";
    if (data->hw_offload != HW_OFFLOAD_NO && data->hw_offload != HW_OFFLOAD_AUTO)
        return "esp_gw offloads nothing to network cards: leave hw_offload out";
    if (data->tfc)
        return "esp_gw sends no TFC padding: leave tfc_padding out";
    if (!data->replay_window)
        return "esp_gw always has an anti-replay window: leave replay_window out";
    if (data->mode == MODE_TUNNEL &&
        (!data->copy_df || !data->copy_ecn || data->copy_dscp != DSCP_COPY_OUT_ONLY))
        return "esp_gw copies DF, ECN and outbound DSCP: leave copy_df, copy_ecn and copy_dscp out";
    return NULL;
}

/** Limits of a count: `soft_NAME`, `hard_NAME`. */
static void set_limits(json_t *object, const char *name, uint64_t rekey, uint64_t life)
{
    char member[32];

    snprintf(member, sizeof member, "soft_%s", name);
    json_object_set_new(object, member, rekey ? json_integer(rekey) : json_null());
    snprintf(member, sizeof member, "hard_%s", name);
    json_object_set_new(object, member, life ? json_integer(life) : json_null());
}

static json_t *direction(esp_gw_sa_t *this)
{
    return json_string(this->inbound ? "inbound" : "outbound");
}

host_t *esp_gw_sa_local(esp_gw_sa_t *this)
{
    return this->inbound ? this->dst : this->src;
}

host_t *esp_gw_sa_remote(esp_gw_sa_t *this)
{
    return this->inbound ? this->src : this->dst;
}

static bool names_one(linked_list_t *selectors, host_t *end)
{
    enumerator_t *enumerator = selectors->create_enumerator(selectors);
    traffic_selector_t *ts;
    bool found = FALSE;

    while (!found && enumerator->enumerate(enumerator, &ts))
        found = ts->is_host(ts, end);
    enumerator->destroy(enumerator);
    return found;
}

static uint32_t window(uint32_t wanted)
{
    uint32_t rounded = (wanted + WINDOW_STEP - 1) / WINDOW_STEP * WINDOW_STEP;

    return min(max(rounded, MIN_WINDOW), MAX_WINDOW);
}

/** `encapsulation` and `remote_port` as they are now. */
static void set_encapsulation(json_t *object, esp_gw_sa_t *this)
{
    host_t *remote = esp_gw_sa_remote(this);

    json_object_set_new(object, "encapsulation", json_string(this->encap ? "udp" : "none"));
    json_object_set_new(object, "remote_port",
                        this->encap ? json_integer(remote->get_port(remote)) : json_null());
}

/** Seconds between NAT keepalives (RFC 3948 4): charon's own don't reach the gateway's port. */
static int keepalive(void)
{
    uint32_t seconds = lib->settings->get_time(lib->settings, "%s.keep_alive", KEEPALIVE, lib->ns);

    return min(seconds, MAX_KEEPALIVE);
}

static json_t *describe(esp_gw_sa_t *this, kernel_ipsec_add_sa_t *data, const char *suite,
                        json_t *selectors)
{
    lifetime_cfg_t *limits = data->lifetime;
    host_t *local = esp_gw_sa_local(this);
    json_t *object;

    object = json_pack(
        "{s:o, s:I, s:s, s:s, s:o, s:o, s:o, s:b, s:i, s:i, s:o, s:n, s:n}", "direction",
        direction(this), "spi", (json_int_t)ntohl(this->spi), "suite", suite, "mode",
        data->mode == MODE_TUNNEL ? "tunnel" : "transport", "local", esp_gw_address(local),
        "remote", esp_gw_address(esp_gw_sa_remote(this)), "selectors", selectors, "esn",
        (int)data->esn, "replay_window", (int)window(data->replay_window), "keepalive",
        this->encap && !this->inbound ? keepalive() : 0, "local_port",
        this->encap ? json_integer(local->get_port(local)) : json_null(), "local_original",
        "remote_original");
    set_encapsulation(object, this);
    set_limits(object, "bytes", limits->bytes.rekey, limits->bytes.life);
    set_limits(object, "packets", limits->packets.rekey, limits->packets.life);
    /* Told for people: the timers are here. */
    set_limits(object, "seconds", limits->time.rekey, limits->time.life);
    return object;
}

esp_gw_sa_t *esp_gw_sa_create(kernel_ipsec_sa_id_t *id, kernel_ipsec_add_sa_t *data,
                              json_t *suites, char *words)
{
    linked_list_t *local = data->inbound ? data->dst_ts : data->src_ts;
    linked_list_t *remote = data->inbound ? data->src_ts : data->dst_ts;
    const char *reason = unsupported(id, data);
    char suite[32];
    esp_gw_sa_t *this;
    json_t *selectors;

    if (reason) {
        snprintf(words, ESP_GW_WORDS, "%s", reason);
        return NULL;
    }
    if (!suite_name(data, suite, sizeof suite) || data->enc_key.len > MAX_KEY_LEN ||
        (suites && !is_listed(suites, suite))) {
        snprintf(words, ESP_GW_WORDS,
                 "esp_gw has no such cipher: give esp_proposals with aes256gcm16, aes128gcm16 or "
                 "chacha20poly1305");
        return NULL;
    }
    selectors = esp_gw_selectors(local, remote, words);
    if (!selectors)
        return NULL;
    INIT(this,
        .inbound = data->inbound,
        .spi = id->spi,
        .src = id->src->clone(id->src),
        .dst = id->dst->clone(id->dst),
        .reqid = data->reqid,
        .soft_time = data->lifetime->time.rekey,
        .hard_time = data->lifetime->time.life,
        .key = chunk_clone(data->enc_key),
        .encap = data->encap,
    );
    this->object = describe(this, data, suite, selectors);
    this->names_end = names_one(local, esp_gw_sa_local(this)) ||
                      names_one(remote, esp_gw_sa_remote(this));
    return this;
}

/** A gateway of the first version of the protocol has no numbers. */
static void add_number(json_t *object, esp_gw_sa_t *this)
{
    if (this->number)
        json_object_set_new(object, "number", json_integer(this->number));
}

json_t *esp_gw_sa_name(esp_gw_sa_t *this)
{
    json_t *name = json_pack("{s:o, s:I}", "direction", direction(this), "spi",
                             (json_int_t)ntohl(this->spi));

    add_number(name, this);
    return name;
}

void esp_gw_sa_set_number(esp_gw_sa_t *this, uint32_t number)
{
    this->number = number;
    add_number(this->object, this);
}

json_t *esp_gw_sa_object(esp_gw_sa_t *this)
{
    char hex[2 * MAX_KEY_LEN + 1];
    json_t *object = json_copy(this->object);

    chunk_to_hex(this->key, hex, FALSE);
    json_object_set_new(object, "key", json_string(hex));
    memwipe(hex, sizeof hex);
    json_object_set_new(object, "child", json_string(this->label));
    return object;
}

void esp_gw_wipe_keys(json_t *objects)
{
    json_t *object, *key;
    size_t i;

    json_array_foreach(objects, i, object) {
        key = json_object_get(object, "key");
        /* The library has no way to overwrite a value; its memory is the value's own. */
        if (key)
            memwipe((char *)json_string_value(key), json_string_length(key));
    }
}

void esp_gw_sa_installed(esp_gw_sa_t *this)
{
    this->installed = TRUE;
    chunk_clear(&this->key);
}

json_t *esp_gw_sa_update(esp_gw_sa_t *this)
{
    json_t *object = esp_gw_sa_name(this);

    json_object_set_new(object, "local", esp_gw_address(esp_gw_sa_local(this)));
    json_object_set_new(object, "remote", esp_gw_address(esp_gw_sa_remote(this)));
    set_encapsulation(object, this);
    return object;
}

void esp_gw_sa_destroy(esp_gw_sa_t *this)
{
    json_decref(this->object);
    chunk_clear(&this->key);
    this->src->destroy(this->src);
    this->dst->destroy(this->dst);
    free(this);
}
