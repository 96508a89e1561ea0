/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_selectors.h"

#include "esp_gw_control.h"

#include <arpa/inet.h>
#include <collections/linked_list.h>
#include <library.h>
#include <netinet/in.h>
#include <stdio.h>

#define ADDRESS_LEN INET6_ADDRSTRLEN

static void print_address(int family, chunk_t address, char *text)
{
    if (!inet_ntop(family, address.ptr, text, ADDRESS_LEN))
        *text = '\0';
}

json_t *esp_gw_address(host_t *host)
{
    char text[ADDRESS_LEN];

    print_address(host->get_family(host), host->get_address(host), text);
    return json_string(text);
}

static int family_of(traffic_selector_t *ts)
{
    return ts->get_type(ts) == TS_IPV4_ADDR_RANGE ? AF_INET : AF_INET6;
}

static json_t *network(traffic_selector_t *ts)
{
    char from[ADDRESS_LEN], to[ADDRESS_LEN];
    int family = family_of(ts);
    host_t *net;
    uint8_t bits;
    bool exact = ts->to_subnet(ts, &net, &bits);

    net->destroy(net);
    print_address(family, ts->get_from_address(ts), from);
    if (exact)
        return json_sprintf("%s/%d", from, bits);
    print_address(family, ts->get_to_address(ts), to);
    return json_sprintf("%s-%s", from, to);
}

static uint8_t protocol_of(traffic_selector_t *local, traffic_selector_t *remote)
{
    return max(local->get_protocol(local), remote->get_protocol(remote));
}

static bool has_ports(traffic_selector_t *ts)
{
    return ts->get_from_port(ts) != 0 || ts->get_to_port(ts) != 0xffff;
}

static json_t *ports(traffic_selector_t *ts)
{
    uint16_t from = ts->get_from_port(ts), to = ts->get_to_port(ts);

    if (!has_ports(ts))
        return json_null();
    return from == to ? json_integer(from) : json_sprintf("%d-%d", from, to);
}

static bool refuse(char *words, const char *reason)
{
    snprintf(words, ESP_GW_WORDS, "%s", reason);
    return FALSE;
}

/** Whether a selector can be expressed: OPAQUE ports (RFC 4301 4.4.1.1) and ICMP types can't. */
static bool is_supported(traffic_selector_t *ts, uint8_t protocol, char *words)
{
    if (ts->get_from_port(ts) > ts->get_to_port(ts))
        return refuse(words, "esp_gw has no traffic selectors with OPAQUE ports");
    if (has_ports(ts) && (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6))
        return refuse(words, "esp_gw has no traffic selectors by ICMP type: leave the type out");
    if (has_ports(ts) && !protocol)
        return refuse(words, "esp_gw has no traffic selectors with ports of any protocol: "
                             "name the protocol");
    return TRUE;
}

json_t *esp_gw_selector(traffic_selector_t *local, traffic_selector_t *remote, char *words)
{
    uint8_t protocol = protocol_of(local, remote);

    if (!is_supported(local, protocol, words) || !is_supported(remote, protocol, words))
        return NULL;
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "local", network(local), "remote",
                     network(remote), "protocol", protocol ? json_integer(protocol) : json_null(),
                     "local_port", ports(local), "remote_port", ports(remote));
}

static bool is_pair(traffic_selector_t *local, traffic_selector_t *remote)
{
    uint8_t a = local->get_protocol(local), b = remote->get_protocol(remote);

    return local->get_type(local) == remote->get_type(remote) && (!a || !b || a == b);
}

json_t *esp_gw_selectors(linked_list_t *local, linked_list_t *remote, char *words)
{
    enumerator_t *mine = local->create_enumerator(local), *others;
    traffic_selector_t *my_ts, *other_ts;
    json_t *found = json_array(), *selector;

    while (found && mine->enumerate(mine, &my_ts)) {
        others = remote->create_enumerator(remote);
        while (found && others->enumerate(others, &other_ts)) {
            if (!is_pair(my_ts, other_ts))
                continue;
            selector = esp_gw_selector(my_ts, other_ts, words);
            if (selector) {
                json_array_append_new(found, selector);
            } else {
                json_decref(found);
                found = NULL;
            }
        }
        others->destroy(others);
    }
    mine->destroy(mine);
    if (found && !json_array_size(found)) {
        refuse(words, "no local traffic selector fits a remote one");
        json_decref(found);
        found = NULL;
    }
    return found;
}

static uint32_t network_bits(traffic_selector_t *ts)
{
    host_t *net;
    uint8_t bits;

    ts->to_subnet(ts, &net, &bits);
    net->destroy(net);
    return bits;
}

uint32_t esp_gw_selector_rank(traffic_selector_t *local, traffic_selector_t *remote)
{
    uint32_t said = (network_bits(local) + network_bits(remote)) * 8;

    /* A network of a longer prefix comes first, whatever protocol and ports say. */
    said += protocol_of(local, remote) ? 4 : 0;
    said += has_ports(local) ? 1 : 0;
    said += has_ports(remote) ? 1 : 0;
    return (256 * 8 + 7 - said) * 8;
}

static traffic_selector_t *one_end(json_t *event, const char *address, const char *port,
                                   uint8_t protocol)
{
    const char *text = json_string_value(json_object_get(event, address));
    uint16_t number = json_integer_value(json_object_get(event, port));
    host_t *host = text ? host_create_from_string((char *)text, 0) : NULL;

    if (!host)
        return NULL;
    /* Takes the host. */
    return traffic_selector_create_from_subnet(host, host->get_family(host) == AF_INET ? 32 : 128,
                                               protocol, number, number ?: 0xffff);
}

bool esp_gw_packet(json_t *event, traffic_selector_t **local, traffic_selector_t **remote)
{
    uint8_t protocol = json_integer_value(json_object_get(event, "protocol"));

    *local = one_end(event, "local", "local_port", protocol);
    *remote = one_end(event, "remote", "remote_port", protocol);
    if (*local && *remote)
        return TRUE;
    DESTROY_IF(*local);
    DESTROY_IF(*remote);
    *local = *remote = NULL;
    return FALSE;
}
