/* SPDX-License-Identifier: GPL-2.0-or-later
   SAs as charon asks for them. */
#ifndef ESP_GW_SA_H_
#define ESP_GW_SA_H_

#include <jansson.h>
#include <kernel/kernel_ipsec.h>

#define ESP_GW_LABEL 64

/** An SA: waiting for the rest of its child, or installed. */
typedef struct {
    bool inbound;
    /** in network order */
    uint32_t spi;
    /** tells outbound SAs apart whose peers have chosen the same SPI; 0 for the first one */
    uint32_t number;
    host_t *src, *dst;
    uint32_t reqid;
    /** unique id of the CHILD_SA that is being installed, 0 if it is not known */
    uint32_t child;
    /** name of the CHILD_SA, for people */
    char label[ESP_GW_LABEL];
    /** seconds, 0 for none */
    uint64_t soft_time, hard_time;
    /** tells SAs of one SPI apart */
    uint32_t serial;
    /** what the gateway gets, without the key */
    json_t *object;
    /** key and salt, until it is installed or may be; then wiped */
    chunk_t key;
    /** policies of its kind that have been seen */
    uint32_t policies;
    /** the gateway has it */
    bool installed;
    /** the gateway lost it, and charon has been told */
    bool lost;
    /** the gateway doesn't know these addresses yet */
    bool moved;
    /** ESP in UDP, by the ports of the addresses */
    bool encap;
    /** a selector names the address of an end */
    bool names_end;
} esp_gw_sa_t;

/** An SA of what charon gives; NULL and words of ESP_GW_WORDS bytes if esp_gw can't carry it. */
esp_gw_sa_t *esp_gw_sa_create(kernel_ipsec_sa_id_t *id, kernel_ipsec_add_sa_t *data,
                              json_t *suites, char *words);

/** Its name on the control socket: direction, SPI and number. */
json_t *esp_gw_sa_name(esp_gw_sa_t *this);

/** Gives it the number by which the gateway tells it from others of its SPI. */
void esp_gw_sa_set_number(esp_gw_sa_t *this, uint32_t number);

/** The object for InstallChild, with the key: esp_gw_wipe_keys() is due after its use. */
json_t *esp_gw_sa_object(esp_gw_sa_t *this);

/** Overwrites the keys in a list of SA objects. */
void esp_gw_wipe_keys(json_t *objects);

/** The SA is in place: wipes the key. */
void esp_gw_sa_installed(esp_gw_sa_t *this);

/** Parameters of UpdateSa with its addresses. */
json_t *esp_gw_sa_update(esp_gw_sa_t *this);

/** The address of this end, and that of the peer. */
host_t *esp_gw_sa_local(esp_gw_sa_t *this);
host_t *esp_gw_sa_remote(esp_gw_sa_t *this);

void esp_gw_sa_destroy(esp_gw_sa_t *this);

#endif
