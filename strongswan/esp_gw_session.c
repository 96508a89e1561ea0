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
/** Milliseconds between tries to have a port that another program has. */
#define PORT_PAUSE 5000

struct esp_gw_session_t {
    esp_gw_gateway_t *gateway;
    esp_gw_relay_t *relay;
    char *path;
    thread_t *thread;
    /** readable when the plugin ends */
    int stop;
    /** charon has had a session before: it knows what there should be */
    bool had_session;
    /** the last failures that were logged: of a session, of its port */
    char said[ESP_GW_WORDS], said_of_port[ESP_GW_WORDS];
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

/** Takes the port of ESP in UDP, without which the rest of a session goes on. */
static void open_port(esp_gw_session_t *this)
{
    char words[ESP_GW_WORDS];
    uint16_t port;
    int fd = esp_gw_gateway_ike_socket(this->gateway, &port, words);

    if (fd >= 0) {
        this->said_of_port[0] = '\0';
        esp_gw_relay_attach(this->relay, fd, port);
        DBG1(DBG_KNL, "esp_gw: IKE and ESP share port %d of the gateway", port);
    } else if (!streq(words, this->said_of_port)) {
        snprintf(this->said_of_port, sizeof this->said_of_port, "%s", words);
        DBG1(DBG_KNL, "esp_gw: no IKE at the port of ESP in UDP: %s", words);
    }
}

/** Waits for an event, and meanwhile for the port; false when a connection ends. */
static bool await_event(esp_gw_session_t *this, esp_gw_control_t *watch, esp_gw_control_t *session)
{
    struct pollfd event = {.fd = esp_gw_control_fd(watch), .events = POLLIN};

    while (!esp_gw_control_has_line(watch)) {
        bool attached = esp_gw_relay_is_attached(this->relay);

        if (!await(this, watch, session, attached ? -1 : PORT_PAUSE))
            return FALSE;
        if (poll(&event, 1, 0) > 0)
            return TRUE;
        if (!attached)
            open_port(this);
    }
    return TRUE;
}

/** Passes events until a connection ends. */
static void read_events(esp_gw_session_t *this, esp_gw_control_t *watch,
                        esp_gw_control_t *session, char *words)
{
    bool complete = TRUE;
    json_t *message;

    snprintf(words, ESP_GW_WORDS, "the gateway has ended it");
    while (await_event(this, watch, session)) {
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
    char words[ESP_GW_WORDS] = "";
    esp_gw_control_t *session, *watch = NULL;
    json_t *answer = NULL;

    session = esp_gw_control_open(this->path, words);
    if (session)
        watch = esp_gw_control_open(this->path, words);
    if (watch)
        answer = open_session(this, session, words);
    if (answer && !esp_gw_control_send(watch, "Watch", json_pack("{s:s}", "owner", OWNER))) {
        snprintf(words, sizeof words, "no watch: %s", strerror(errno));
    } else if (answer) {
        DBG1(DBG_KNL, "esp_gw: session with the gateway at %s", this->path);
        this->said[0] = '\0';
        esp_gw_gateway_begin(this->gateway, session, answer);
        this->had_session = TRUE;
        open_port(this);
        read_events(this, watch, session, words);
        esp_gw_relay_detach(this->relay);
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

esp_gw_session_t *esp_gw_session_create(esp_gw_gateway_t *gateway, esp_gw_relay_t *relay,
                                        const char *path)
{
    esp_gw_session_t *this;

    INIT(this,
        .gateway = gateway,
        .relay = relay,
        .path = strdup(path),
        .stop = eventfd(0, EFD_CLOEXEC),
    );
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
