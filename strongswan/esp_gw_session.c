/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_session.h"

#include "esp_gw_sync.h"

#include <daemon.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <threading/thread.h>
#include <unistd.h>

#define OWNER "ike"
/** Milliseconds between tries; doubled each time, unless a session has lasted long enough. */
#define FIRST_PAUSE 100
#define LAST_PAUSE 5000
#define LASTING 10000

struct esp_gw_session_t {
    esp_gw_gateway_t *gateway;
    char *path;
    thread_t *thread;
    /** readable when the plugin ends */
    int stop;
    /** charon has had a session before: it knows what there should be */
    bool had_session;
    /** the last failure that was logged */
    char said[ESP_GW_WORDS];
};

static void say(esp_gw_session_t *this, const char *words)
{
    if (!*words || streq(words, this->said))
        return;
    snprintf(this->said, sizeof this->said, "%s", words);
    DBG1(DBG_KNL, "esp_gw: no session with the gateway: %s", words);
}

/** Waits on up to three descriptors; false when the plugin ends, or at one without data. */
static bool await(esp_gw_session_t *this, esp_gw_control_t *watch, esp_gw_control_t *session,
                  int milliseconds)
{
    struct pollfd fds[] = {
        {.fd = this->stop, .events = POLLIN},
        {.fd = watch ? esp_gw_control_fd(watch) : -1, .events = POLLIN},
        {.fd = session ? esp_gw_control_fd(session) : -1, .events = POLLRDHUP},
    };

    if (poll(fds, countof(fds), milliseconds) < 0)
        return errno == EINTR;
    return !fds[0].revents && !fds[2].revents;
}

static json_t *open_session(esp_gw_session_t *this, esp_gw_control_t *session, char *words)
{
    json_t *answer = NULL;
    json_t *parameters = json_pack("{s:s, s:b}", "owner", OWNER, "take_over", this->had_session);

    esp_gw_control_call(session, "OpenSession", parameters, &answer, words);
    return answer;
}

/** Passes events until a connection ends. */
static void read_events(esp_gw_session_t *this, esp_gw_control_t *watch,
                        esp_gw_control_t *session, char *words)
{
    bool complete = TRUE;
    json_t *message;

    snprintf(words, ESP_GW_WORDS, "the gateway has ended it");
    while (esp_gw_control_has_line(watch) || await(this, watch, session, -1)) {
        message = esp_gw_control_receive(watch, words);
        if (!message)
            return;
        complete = esp_gw_gateway_event(this->gateway, json_object_get(message, "parameters"));
        json_decref(message);
        if (!complete) {
            snprintf(words, ESP_GW_WORDS, "events got lost, it begins anew");
            return;
        }
    }
    if (!await(this, NULL, NULL, 0))
        *words = '\0';
}

/** One session, from its beginning to its end. */
static void hold(esp_gw_session_t *this)
{
    char words[ESP_GW_WORDS];
    esp_gw_control_t *session, *watch = NULL;
    json_t *answer = NULL;

    session = esp_gw_control_open(this->path, words);
    if (session)
        watch = esp_gw_control_open(this->path, words);
    if (watch)
        answer = open_session(this, session, words);
    if (answer && esp_gw_control_send(watch, "Watch", json_pack("{s:s}", "owner", OWNER))) {
        DBG1(DBG_KNL, "esp_gw: session with the gateway at %s", this->path);
        this->said[0] = '\0';
        esp_gw_gateway_begin(this->gateway, session, answer);
        this->had_session = TRUE;
        read_events(this, watch, session, words);
        esp_gw_gateway_end(this->gateway);
    }
    say(this, words);
    json_decref(answer);
    if (watch)
        esp_gw_control_close(watch);
    if (session)
        esp_gw_control_close(session);
}

static void *keep(esp_gw_session_t *this)
{
    int pause = FIRST_PAUSE;
    uint64_t began;

    do {
        began = esp_gw_now();
        hold(this);
        if (esp_gw_now() - began > LASTING)
            pause = FIRST_PAUSE;
        else if (pause < LAST_PAUSE)
            pause = min(2 * pause, LAST_PAUSE);
    } while (await(this, NULL, NULL, pause));
    return NULL;
}

esp_gw_session_t *esp_gw_session_create(esp_gw_gateway_t *gateway, const char *path)
{
    esp_gw_session_t *this;

    INIT(this, .gateway = gateway, .path = strdup(path), .stop = eventfd(0, EFD_CLOEXEC));
    if (this->stop >= 0)
        this->thread = thread_create((void *)keep, this);
    if (this->thread)
        return this;
    DBG1(DBG_KNL, "esp_gw: no thread for the session: %s", strerror(errno));
    esp_gw_session_destroy(this);
    return NULL;
}

void esp_gw_session_destroy(esp_gw_session_t *this)
{
    if (this->thread) {
        esp_gw_gateway_close(this->gateway);
        eventfd_write(this->stop, 1);
        this->thread->join(this->thread);
    }
    if (this->stop >= 0)
        close(this->stop);
    free(this->path);
    free(this);
}
