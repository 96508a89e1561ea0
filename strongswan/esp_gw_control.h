/* SPDX-License-Identifier: GPL-2.0-or-later
   A connection on the control socket of esp_gw: JSON lines in the shape of varlink's messages. */
#ifndef ESP_GW_CONTROL_H_
#define ESP_GW_CONTROL_H_

#include <jansson.h>
#include <stdbool.h>

#define ESP_GW_WORDS 512

typedef struct esp_gw_control_t esp_gw_control_t;

typedef enum {
    /** carried out */
    ESP_GW_DONE,
    /** there is no such SA or policy */
    ESP_GW_NOT_FOUND,
    /** understood or not, and not done: the words say why */
    ESP_GW_REFUSED,
    /** no answer: the connection is of no use any more, and the request may have been carried out */
    ESP_GW_LOST,
    /** not sent, or not to its end, so not carried out: there is no connection that is of use */
    ESP_GW_UNSENT,
} esp_gw_outcome_t;

/** True if there is no answer. */
static inline bool esp_gw_is_unanswered(esp_gw_outcome_t outcome)
{
    return outcome == ESP_GW_LOST || outcome == ESP_GW_UNSENT;
}

/** Connects; NULL and words of ESP_GW_WORDS bytes if that fails. */
esp_gw_control_t *esp_gw_control_open(const char *path, char *words);

/** The file descriptor, for polling. */
int esp_gw_control_fd(esp_gw_control_t *this);

/** Sends a request. Takes `parameters`, and wipes what it has written. */
bool esp_gw_control_send(esp_gw_control_t *this, const char *method, json_t *parameters);

/** The next message, or NULL with words. */
json_t *esp_gw_control_receive(esp_gw_control_t *this, char *words);

/** The file descriptor that came with the last answers, for the caller to close; -1 for none. */
int esp_gw_control_take_fd(esp_gw_control_t *this);

/** True if a whole message has arrived already. */
bool esp_gw_control_has_line(esp_gw_control_t *this);

/**
 * Sends a request and waits for its answer. Takes `parameters`. `answer`, if given, receives the
 * answer's parameters when the request was carried out; `words` receive the reason when not.
 */
esp_gw_outcome_t esp_gw_control_call(esp_gw_control_t *this, const char *method,
                                     json_t *parameters, json_t **answer, char *words);

/** Ends the connection: who waits on it, or polls it, sees its end. It is still to be closed. */
void esp_gw_control_end(esp_gw_control_t *this);

void esp_gw_control_close(esp_gw_control_t *this);

#endif
