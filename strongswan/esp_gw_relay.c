/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_relay.h"

#include <daemon.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <threading/mutex.h>
#include <unistd.h>

/** Bytes of the Non-ESP Marker (RFC 3948 2.2), which the gateway takes off and puts on. */
#define MARKER_LEN 4
#define MAX_MESSAGE 65535

/** In front of each message; addresses of IPv4 are mapped (RFC 4291 2.5.5.2). */
typedef struct __attribute__((packed)) {
    struct in6_addr source, destination;
    /** in network order */
    uint16_t source_port, destination_port;
} header_t;

struct esp_gw_relay_t {
    mutex_t *mutex;
    /** the session's socket, -1 while there is none */
    int fd;
    /** has the session's socket, so that who waits need not know of sessions */
    int epoll;
    uint16_t port;
    /** one thread receives */
    uint8_t buffer[MARKER_LEN + MAX_MESSAGE];
};

esp_gw_relay_t *esp_gw_relay_create(void)
{
    esp_gw_relay_t *this;

    INIT(this,
        .mutex = mutex_create(MUTEX_TYPE_DEFAULT),
        .fd = -1,
        .epoll = epoll_create1(EPOLL_CLOEXEC),
        .port = lib->settings->get_int(lib->settings, "%s.port_nat_t", CHARON_NATT_PORT, lib->ns),
    );
    if (this->epoll >= 0)
        return this;
    DBG1(DBG_KNL, "esp_gw: no relay of IKE messages: %s", strerror(errno));
    esp_gw_relay_destroy(this);
    return NULL;
}

/** The mutex is held. */
static void drop(esp_gw_relay_t *this)
{
    if (this->fd < 0)
        return;
    epoll_ctl(this->epoll, EPOLL_CTL_DEL, this->fd, NULL);
    close(this->fd);
    this->fd = -1;
}

void esp_gw_relay_attach(esp_gw_relay_t *this, int fd, uint16_t port)
{
    struct epoll_event readable = {.events = EPOLLIN};

    this->mutex->lock(this->mutex);
    drop(this);
    this->fd = fd;
    this->port = port;
    if (epoll_ctl(this->epoll, EPOLL_CTL_ADD, fd, &readable) < 0) {
        DBG1(DBG_KNL, "esp_gw: no relay of IKE messages: %s", strerror(errno));
        drop(this);
    }
    this->mutex->unlock(this->mutex);
}

void esp_gw_relay_detach(esp_gw_relay_t *this)
{
    this->mutex->lock(this->mutex);
    drop(this);
    this->mutex->unlock(this->mutex);
}

bool esp_gw_relay_is_attached(esp_gw_relay_t *this)
{
    bool attached;

    this->mutex->lock(this->mutex);
    attached = this->fd >= 0;
    this->mutex->unlock(this->mutex);
    return attached;
}

uint16_t esp_gw_relay_port(esp_gw_relay_t *this)
{
    uint16_t port;

    this->mutex->lock(this->mutex);
    port = this->port;
    this->mutex->unlock(this->mutex);
    return port;
}

int esp_gw_relay_fd(esp_gw_relay_t *this)
{
    return this->epoll;
}

/** True of addresses between which charon puts the marker, and looks for it. */
static bool is_marked(uint16_t source_port, uint16_t destination_port)
{
    return source_port != IKEV2_UDP_PORT && destination_port != IKEV2_UDP_PORT;
}

static host_t *host_of(struct in6_addr address, uint16_t port)
{
    chunk_t bytes = chunk_from_thing(address);

    if (IN6_IS_ADDR_V4MAPPED(&address))
        return host_create_from_chunk(AF_INET, chunk_skip(bytes, 12), ntohs(port));
    return host_create_from_chunk(AF_INET6, bytes, ntohs(port));
}

packet_t *esp_gw_relay_receive(esp_gw_relay_t *this)
{
    header_t header;
    struct iovec parts[] = {
        {.iov_base = &header, .iov_len = sizeof header},
        {.iov_base = this->buffer + MARKER_LEN, .iov_len = MAX_MESSAGE},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = countof(parts)};
    host_t *source, *destination;
    chunk_t data;
    ssize_t received = -1;

    this->mutex->lock(this->mutex);
    if (this->fd >= 0) {
        received = recvmsg(this->fd, &message, MSG_DONTWAIT);
        if (received < 0 && errno != EAGAIN && errno != EINTR) {
            DBG1(DBG_NET, "esp_gw: the relay of IKE messages has ended: %s", strerror(errno));
            drop(this);
        }
    }
    this->mutex->unlock(this->mutex);
    if (received <= (ssize_t)sizeof header)
        return NULL;
    source = host_of(header.source, header.source_port);
    destination = host_of(header.destination, header.destination_port);
    data = chunk_create(this->buffer + MARKER_LEN, received - sizeof header);
    if (is_marked(ntohs(header.source_port), ntohs(header.destination_port)))
        data = chunk_create(this->buffer, data.len + MARKER_LEN);
    return packet_create_from_data(source, destination, chunk_clone(data));
}

static struct in6_addr address_of(host_t *host)
{
    struct in6_addr address = {};
    chunk_t bytes = host->get_address(host);

    if (host->get_family(host) == AF_INET)
        address.s6_addr[10] = address.s6_addr[11] = 0xff;
    memcpy(address.s6_addr + sizeof address - bytes.len, bytes.ptr, bytes.len);
    return address;
}

void esp_gw_relay_send(esp_gw_relay_t *this, packet_t *packet)
{
    host_t *source = packet->get_source(packet), *destination = packet->get_destination(packet);
    chunk_t data = packet->get_data(packet);
    uint16_t from = source->get_port(source), to = destination->get_port(destination);
    header_t header = {
        .source = address_of(source),
        .destination = address_of(destination),
        .source_port = htons(from),
        .destination_port = htons(to),
    };
    struct iovec parts[2] = {{.iov_base = &header, .iov_len = sizeof header}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = countof(parts)};

    /* NAT keepalives are the gateway's: a message has more than a marker. */
    if (data.len <= MARKER_LEN)
        return;
    if (is_marked(from, to))
        data = chunk_skip(data, MARKER_LEN);
    parts[1] = (struct iovec){.iov_base = data.ptr, .iov_len = data.len};
    this->mutex->lock(this->mutex);
    if (this->fd < 0)
        DBG2(DBG_NET, "esp_gw: a message to %#H is lost: no session with the gateway", destination);
    else if (sendmsg(this->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        DBG2(DBG_NET, "esp_gw: a message to %#H is lost: %s", destination, strerror(errno));
    this->mutex->unlock(this->mutex);
}

void esp_gw_relay_destroy(esp_gw_relay_t *this)
{
    drop(this);
    if (this->epoll >= 0)
        close(this->epoll);
    this->mutex->destroy(this->mutex);
    free(this);
}
