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

static void print_label(child_sa_t *child, char *label)
{
    char *character;

    snprintf(label, ESP_GW_LABEL, "%.40s{%u}", child->get_name(child),
             child->get_unique_id(child));
    /* A name is bytes, and may be cut inside a character. */
    for (character = label; *character; character++)
        if (*character < ' ' || *character > '~')
            *character = '_';
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
