/* SPDX-License-Identifier: GPL-2.0-or-later
   Traffic selectors and addresses as the control socket has them. */
#ifndef ESP_GW_SELECTORS_H_
#define ESP_GW_SELECTORS_H_

#include <jansson.h>
#include <networking/host.h>
#include <selectors/traffic_selector.h>

/** An address without its port, also where it is all zeros. */
json_t *esp_gw_address(host_t *host);

/** A selector of outbound traffic; NULL and words of ESP_GW_WORDS bytes if there is none for it. */
json_t *esp_gw_selector(traffic_selector_t *local, traffic_selector_t *remote, char *words);

/**
 * The selectors of every pair of two lists that has one family and one protocol; NULL and words
 * if one of them can't be expressed, or if there is none.
 */
json_t *esp_gw_selectors(linked_list_t *local, linked_list_t *remote, char *words);

/** The place of a selector among others: the more it says, the smaller; less than 200,000. */
uint32_t esp_gw_selector_rank(traffic_selector_t *local, traffic_selector_t *remote);

/** The packet of an Acquire as a pair of selectors; false if the event names none. */
bool esp_gw_packet(json_t *event, traffic_selector_t **local, traffic_selector_t **remote);

#endif
