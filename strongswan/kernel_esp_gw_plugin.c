/* SPDX-License-Identifier: GPL-2.0-or-later
   charon's plugin kernel-esp-gw: esp_gw carries the ESP of charon's children. */
#include "esp_gw_child.h"
#include "esp_gw_gateway.h"
#include "esp_gw_session.h"
#include "esp_gw_socket.h"
#include "esp_gw_traps.h"

#include <daemon.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define SOCKET "/run/esp-gw/control.sock"
/** The gateway's default: rules keep marked packets out of its TUN device. */
#define FWMARK 0xe5b

/** Hears that charon ends, and that it has installed a trap. */
typedef struct {
    listener_t public;
    esp_gw_gateway_t *gateway;
} hearing_t;

typedef struct {
    kernel_ipsec_t public;
    hearing_t hearing;
    esp_gw_gateway_t *gateway;
    esp_gw_relay_t *relay;
    esp_gw_session_t *session;
} private_backend_t;

METHOD(kernel_ipsec_t, get_features, kernel_feature_t,
    private_backend_t *this)
{
    /* Policies name no outer address. */
    return KERNEL_NO_POLICY_UPDATES
#if CHARON_MAJOR >= 6
           | KERNEL_SA_USE_TIME
#endif
        ;
}

METHOD(kernel_ipsec_t, get_spi, status_t,
    private_backend_t *this, host_t *src, host_t *dst, uint8_t protocol, uint32_t *spi)
{
    return esp_gw_gateway_reserve_spi(this->gateway, spi);
}

METHOD(kernel_ipsec_t, get_cpi, status_t,
    private_backend_t *this, host_t *src, host_t *dst, uint16_t *cpi)
{
    return NOT_SUPPORTED;
}

METHOD(kernel_ipsec_t, add_sa, status_t,
    private_backend_t *this, kernel_ipsec_sa_id_t *id, kernel_ipsec_add_sa_t *data)
{
    return esp_gw_gateway_add_sa(this->gateway, id, data);
}

METHOD(kernel_ipsec_t, update_sa, status_t,
    private_backend_t *this, kernel_ipsec_sa_id_t *id, kernel_ipsec_update_sa_t *data)
{
    return esp_gw_gateway_update_sa(this->gateway, id, data);
}

METHOD(kernel_ipsec_t, query_sa, status_t,
    private_backend_t *this, kernel_ipsec_sa_id_t *id, kernel_ipsec_query_sa_t *data, uint64_t *bytes,
    uint64_t *packets, time_t *time)
{
    return esp_gw_gateway_query_sa(this->gateway, id, bytes, packets, time);
}

METHOD(kernel_ipsec_t, del_sa, status_t,
    private_backend_t *this, kernel_ipsec_sa_id_t *id, kernel_ipsec_del_sa_t *data)
{
    return esp_gw_gateway_remove_sa(this->gateway, id);
}

METHOD(kernel_ipsec_t, flush_sas, status_t,
    private_backend_t *this)
{
    return esp_gw_gateway_flush_sas(this->gateway);
}

METHOD(kernel_ipsec_t, add_policy, status_t,
    private_backend_t *this, kernel_ipsec_policy_id_t *id, kernel_ipsec_manage_policy_t *data)
{
    return esp_gw_gateway_add_policy(this->gateway, id, data);
}

METHOD(kernel_ipsec_t, query_policy, status_t,
    private_backend_t *this, kernel_ipsec_policy_id_t *id, kernel_ipsec_query_policy_t *data,
    time_t *use_time)
{
    /* charon asks the SA then. */
    return NOT_SUPPORTED;
}

METHOD(kernel_ipsec_t, del_policy, status_t,
    private_backend_t *this, kernel_ipsec_policy_id_t *id, kernel_ipsec_manage_policy_t *data)
{
    return esp_gw_gateway_remove_policy(this->gateway, id, data);
}

METHOD(kernel_ipsec_t, flush_policies, status_t,
    private_backend_t *this)
{
    return esp_gw_gateway_flush_policies(this->gateway);
}

METHOD(kernel_ipsec_t, bypass_socket, bool,
    private_backend_t *this, int fd, int family)
{
    uint32_t mark = lib->settings->get_int(lib->settings, "%s.plugins.kernel-esp-gw.fwmark",
                                           FWMARK, lib->ns);

    if (setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0)
        return TRUE;
    DBG1(DBG_KNL, "esp_gw: a socket of IKE could not be marked: %s", strerror(errno));
    return FALSE;
}

METHOD(kernel_ipsec_t, enable_udp_decap, bool,
    private_backend_t *this, int fd, int family, uint16_t port)
{
    /* The port of ESP in UDP is the gateway's: only another plugin's socket asks. */
    return FALSE;
}

METHOD(listener_t, alert, bool,
    hearing_t *this, ike_sa_t *ike_sa, alert_t alert, va_list args)
{
    if (alert == ALERT_SHUTDOWN_SIGNAL)
        esp_gw_gateway_leave_policies(this->gateway);
    return TRUE;
}

METHOD(listener_t, child_state_change, bool,
    hearing_t *this, ike_sa_t *ike_sa, child_sa_t *child, child_sa_state_t state)
{
    if (state == CHILD_ROUTED)
        esp_gw_traps_name(this->gateway, child);
    return TRUE;
}

METHOD(kernel_ipsec_t, destroy, void,
    private_backend_t *this)
{
    charon->bus->remove_listener(charon->bus, &this->hearing.public);
    charon->bus->remove_listener(charon->bus, esp_gw_child_listener());
    if (this->session)
        esp_gw_session_destroy(this->session);
    lib->set(lib, ESP_GW_RELAY, NULL);
    if (this->relay)
        esp_gw_relay_destroy(this->relay);
    esp_gw_gateway_destroy(this->gateway);
    free(this);
}

/** Says which other plugin would take the port that the gateway has. */
static void look_for_sockets(void)
{
    enumerator_t *enumerator = lib->plugins->create_plugin_enumerator(lib->plugins);
    plugin_t *plugin;

    while (enumerator->enumerate(enumerator, &plugin, NULL)) {
        char *name = plugin->get_name(plugin);

        if (strpfx(name, "socket-"))
            DBG1(DBG_KNL, "esp_gw: the plugin %s is loaded too and takes the gateway's port of ESP "
                 "in UDP: set load = no in its section", name);
    }
    enumerator->destroy(enumerator);
}

static kernel_ipsec_t *create_backend(void)
{
    private_backend_t *this;

    INIT(this,
        .public = {
            .get_features = _get_features,
            .get_spi = _get_spi,
            .get_cpi = _get_cpi,
            .add_sa = _add_sa,
            .update_sa = _update_sa,
            .query_sa = _query_sa,
            .del_sa = _del_sa,
            .flush_sas = _flush_sas,
            .add_policy = _add_policy,
            .query_policy = _query_policy,
            .del_policy = _del_policy,
            .flush_policies = _flush_policies,
            .bypass_socket = _bypass_socket,
            .enable_udp_decap = _enable_udp_decap,
            .destroy = _destroy,
        },
        .gateway = esp_gw_gateway_create(),
        .relay = esp_gw_relay_create(),
    );
    look_for_sockets();
    charon->bus->add_listener(charon->bus, esp_gw_child_listener());
    this->hearing.public.alert = _alert;
    this->hearing.public.child_state_change = _child_state_change;
    this->hearing.gateway = this->gateway;
    charon->bus->add_listener(charon->bus, &this->hearing.public);
    if (this->relay)
        this->session = esp_gw_session_create(
            this->gateway, this->relay,
            lib->settings->get_str(lib->settings, "%s.plugins.kernel-esp-gw.socket", SOCKET,
                                   lib->ns));
    lib->set(lib, ESP_GW_RELAY, this->relay);
    if (this->session)
        return &this->public;
    destroy(this);
    return NULL;
}

METHOD(plugin_t, get_name, char *,
    plugin_t *this)
{
    return "kernel-esp-gw";
}

METHOD(plugin_t, get_plugin_features, int,
    plugin_t *this, plugin_feature_t *features[])
{
    static plugin_feature_t f[] = {
        PLUGIN_CALLBACK(kernel_ipsec_register, create_backend),
            PLUGIN_PROVIDE(CUSTOM, "kernel-ipsec"),
        PLUGIN_CALLBACK(socket_register, esp_gw_socket_create),
            PLUGIN_PROVIDE(CUSTOM, "socket"),
                PLUGIN_DEPENDS(CUSTOM, "kernel-ipsec"),
    };

    *features = f;
    return countof(f);
}

METHOD(plugin_t, destroy_plugin, void,
    plugin_t *this)
{
    free(this);
}

/** The loader's entry. */
__attribute__((visibility("default"))) plugin_t *kernel_esp_gw_plugin_create(void);

plugin_t *kernel_esp_gw_plugin_create(void)
{
    plugin_t *this;

    INIT(this,
        .get_name = _get_name,
        .get_features = _get_plugin_features,
        .destroy = _destroy_plugin,
    );
    return this;
}
