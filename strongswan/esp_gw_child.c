/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_child.h"

#include "esp_gw_sa.h"

#include <daemon.h>
#include <stdio.h>

static __thread struct {
    uint32_t id;
    bool has_policies;
    char label[ESP_GW_LABEL];
} installing;

void esp_gw_child_make_printable(char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = '_';
}

static void print_label(child_sa_t *child, char *label)
{
    snprintf(label, ESP_GW_LABEL, "%.40s{%u}", child->get_name(child),
             child->get_unique_id(child));
    esp_gw_child_make_printable(label);
}

METHOD(listener_t, child_state_change, bool,
    listener_t *this, ike_sa_t *ike_sa, child_sa_t *child, child_sa_state_t state)
{
    child_cfg_t *config = child->get_config(child);

    if (state == CHILD_INSTALLING) {
        installing.id = child->get_unique_id(child);
        installing.has_policies = !config->has_option(config, OPT_NO_POLICIES);
        print_label(child, installing.label);
    } else if (installing.id == child->get_unique_id(child)) {
        installing.id = 0;
    }
    return TRUE;
}

listener_t *esp_gw_child_listener(void)
{
    static listener_t listener;

    listener.child_state_change = _child_state_change;
    return &listener;
}

uint32_t esp_gw_child_installing(void)
{
    return installing.id;
}

bool esp_gw_child_has_policies(void)
{
    return !installing.id || installing.has_policies;
}

void esp_gw_child_label(uint32_t spi, bool inbound, char *label)
{
    ike_sa_t *ike_sa = charon->bus->get_sa(charon->bus);
    child_sa_t *child = NULL;

    if (installing.id) {
        snprintf(label, ESP_GW_LABEL, "%s", installing.label);
        return;
    }
    if (ike_sa && spi)
        child = ike_sa->get_child_sa(ike_sa, PROTO_ESP, spi, inbound);
    if (child)
        print_label(child, label);
    else
        snprintf(label, ESP_GW_LABEL, "%s", spi ? "a child" : "a trap or a shunt");
}

const char *esp_gw_child_connection(char *connection)
{
    ike_sa_t *ike_sa = charon->bus->get_sa(charon->bus);

    snprintf(connection, ESP_GW_LABEL, "%s", ike_sa ? ike_sa->get_name(ike_sa) : "");
    esp_gw_child_make_printable(connection);
    return connection;
}

void esp_gw_child_describe(json_t *object)
{
    ike_sa_t *ike_sa = charon->bus->get_sa(charon->bus);
    /* charon's conversion of an identity, which the compiler doesn't know. */
    const char *identity = "%Y";
    char connection[ESP_GW_LABEL], peer[ESP_GW_IDENTITY] = "";

    if (ike_sa)
        snprintf(peer, sizeof peer, identity, ike_sa->get_other_eap_id(ike_sa));
    esp_gw_child_make_printable(peer);
    json_object_set_new(object, "connection", json_string(esp_gw_child_connection(connection)));
    json_object_set_new(object, "peer", json_string(peer));
}
