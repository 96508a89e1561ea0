/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_control.h"

#include <errno.h>
#include <library.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PREFIX "io.esp_gw."
/** Seconds for one step of sending, and for an answer. */
#define PATIENCE 10
/** Of a request, as the control protocol has it. */
#define MAX_REQUEST (256 << 10)
#define MAX_LINE (64 << 20)

struct esp_gw_control_t {
    int fd;
    char *buffer;
    size_t size, used, line;
    /** received and not taken, or -1 */
    int passed;
};

static bool fail(char *words, const char *format, const char *detail)
{
    snprintf(words, ESP_GW_WORDS, format, detail);
    return false;
}

esp_gw_control_t *esp_gw_control_open(const char *path, char *words)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = PATIENCE};
    esp_gw_control_t *this;
    int fd;

    if (strlen(path) >= sizeof address.sun_path) {
        fail(words, "%s: too long for the path of a socket", path);
        return NULL;
    }
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        fail(words, "no socket: %s", strerror(errno));
        return NULL;
    }
    /* The time for sending is that for connecting, too. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        snprintf(words, ESP_GW_WORDS, "%s: %s", path, strerror(errno));
        close(fd);
        return NULL;
    }
    INIT(this, .fd = fd, .passed = -1);
    return this;
}

int esp_gw_control_fd(esp_gw_control_t *this)
{
    return this->fd;
}

static bool send_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        data += sent;
        length -= sent;
    }
    return true;
}

/** A request as a line, to be wiped and freed; NULL if it is too long. */
static char *line_of(const char *method, json_t *parameters, size_t *length)
{
    json_t *request;
    char *line = NULL;
    size_t size;

    request = json_pack("{s:o, s:o}", "method", json_sprintf(PREFIX "%s", method), "parameters",
                        parameters);
    if (!request)
        return NULL;
    /* json_dumps() would leave copies of keys behind as its buffer grows. */
    size = json_dumpb(request, NULL, 0, JSON_COMPACT);
    if (size && size <= MAX_REQUEST) {
        line = malloc(size + 1);
        *length = size + 1;
        json_dumpb(request, line, size, JSON_COMPACT);
        line[size] = '\n';
    }
    json_decref(request);
    return line;
}

bool esp_gw_control_send(esp_gw_control_t *this, const char *method, json_t *parameters)
{
    size_t length;
    char *line = line_of(method, parameters, &length);
    bool sent;

    if (!line)
        return false;
    sent = send_all(this->fd, line, length);
    memwipe(line, length);
    free(line);
    return sent;
}

bool esp_gw_control_has_line(esp_gw_control_t *this)
{
    return this->used > this->line &&
           memchr(this->buffer + this->line, '\n', this->used - this->line);
}

/** Keeps the first file descriptor of a message, and closes the others. */
static void keep_passed(esp_gw_control_t *this, struct msghdr *message)
{
    struct cmsghdr *part;
    size_t i;
    int fd;

    for (part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        for (i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof fd; i++) {
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (this->passed < 0)
                this->passed = fd;
            else
                close(fd);
        }
    }
}

/** As recv(), with what is passed beside the bytes. */
static ssize_t receive_some(esp_gw_control_t *this)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec part = {
        .iov_base = this->buffer + this->used,
        .iov_len = this->size - this->used,
    };
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t received = recvmsg(this->fd, &message, MSG_CMSG_CLOEXEC);

    if (received >= 0)
        keep_passed(this, &message);
    return received;
}

json_t *esp_gw_control_receive(esp_gw_control_t *this, char *words)
{
    char *end = NULL;
    size_t seen = 0;
    json_t *message;
    json_error_t error;

    if (this->line) {
        memmove(this->buffer, this->buffer + this->line, this->used - this->line);
        this->used -= this->line;
        this->line = 0;
    }
    while (!this->used || !(end = memchr(this->buffer + seen, '\n', this->used - seen))) {
        ssize_t received;

        seen = this->used;
        if (this->used == this->size) {
            if (this->size >= MAX_LINE) {
                fail(words, "%s", "an answer without an end");
                return NULL;
            }
            this->size = this->size ? 2 * this->size : 4096;
            this->buffer = realloc(this->buffer, this->size);
        }
        received = receive_some(this);
        if (received < 0 && errno == EINTR)
            continue;
        if (received <= 0) {
            bool late = received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);

            fail(words, "%s", late            ? "no answer in time"
                              : received == 0 ? "the gateway has ended the connection"
                                              : strerror(errno));
            return NULL;
        }
        this->used += received;
    }
    this->line = end + 1 - this->buffer;
    message = json_loadb(this->buffer, end - this->buffer, 0, &error);
    if (!json_is_object(message)) {
        json_decref(message);
        fail(words, "%s", "an answer that is no JSON object");
        return NULL;
    }
    return message;
}

esp_gw_outcome_t esp_gw_control_call(esp_gw_control_t *this, const char *method,
                                     json_t *parameters, json_t **answer, char *words)
{
    const char *error, *message, *hint;
    esp_gw_outcome_t outcome = ESP_GW_DONE;
    json_t *reply, *details;
    size_t length;
    char *line = line_of(method, parameters, &length);
    bool sent;

    if (!line) {
        fail(words, "%s", "the request exceeds 256 KiB: use fewer traffic selectors");
        return ESP_GW_REFUSED;
    }
    sent = send_all(this->fd, line, length);
    memwipe(line, length);
    free(line);
    if (!sent) {
        fail(words, "%s", strerror(errno));
        return ESP_GW_UNSENT;
    }
    reply = esp_gw_control_receive(this, words);
    if (!reply)
        return ESP_GW_LOST;
    details = json_object_get(reply, "parameters");
    error = json_string_value(json_object_get(reply, "error"));
    if (error) {
        message = json_string_value(json_object_get(details, "message"));
        hint = json_string_value(json_object_get(details, "hint"));
        snprintf(words, ESP_GW_WORDS, "%s%s%s", message ?: error, hint ? ": " : "", hint ?: "");
        outcome = streq(error, PREFIX "NotFound") ? ESP_GW_NOT_FOUND : ESP_GW_REFUSED;
    } else if (answer) {
        *answer = json_incref(details);
    }
    json_decref(reply);
    return outcome;
}

int esp_gw_control_take_fd(esp_gw_control_t *this)
{
    int passed = this->passed;

    this->passed = -1;
    return passed;
}

void esp_gw_control_end(esp_gw_control_t *this)
{
    shutdown(this->fd, SHUT_RDWR);
}

void esp_gw_control_close(esp_gw_control_t *this)
{
    close(this->fd);
    if (this->passed >= 0)
        close(this->passed);
    free(this->buffer);
    free(this);
}
