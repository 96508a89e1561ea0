/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "esp_gw_socket.h"

#include <daemon.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <threading/thread.h>
#include <unistd.h>

#define MAX_PACKET 65535

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} address_t;

typedef union {
    struct cmsghdr align;
    uint8_t v4[CMSG_SPACE(sizeof(struct in_pktinfo))];
    uint8_t v6[CMSG_SPACE(sizeof(struct in6_pktinfo))];
} control_t;

typedef struct {
    socket_t public;
    esp_gw_relay_t *relay;
    /** sockets of `port`, -1 for none */
    int v4, v6;
    uint16_t port;
    /** has both and the relay: each has its turn */
    int epoll;
    uint8_t buffer[MAX_PACKET];
} private_socket_t;

/** The destination address of what was received; NULL if the kernel didn't tell. */
static host_t *destination(struct msghdr *message, uint16_t port)
{
    struct cmsghdr *part;

    for (part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *info = (struct in_pktinfo *)CMSG_DATA(part);

            return host_create_from_chunk(AF_INET, chunk_from_thing(info->ipi_addr), port);
        }
        if (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo *info = (struct in6_pktinfo *)CMSG_DATA(part);

            return host_create_from_chunk(AF_INET6, chunk_from_thing(info->ipi6_addr), port);
        }
    }
    return NULL;
}

static packet_t *read_socket(private_socket_t *this, int fd)
{
    address_t from;
    control_t control;
    struct iovec part = {.iov_base = this->buffer, .iov_len = sizeof this->buffer};
    struct msghdr message = {
        .msg_name = &from,
        .msg_namelen = sizeof from,
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t received = recvmsg(fd, &message, MSG_DONTWAIT);
    host_t *source, *local;

    /* The receiver looks at as much without asking. */
    if (received < 4)
        return NULL;
    local = destination(&message, this->port);
    if (!local)
        return NULL;
    source = host_create_from_sockaddr(&from.any);
    DBG2(DBG_NET, "received packet: from %#H to %#H", source, local);
    return packet_create_from_data(source, local,
                                   chunk_clone(chunk_create(this->buffer, received)));
}

METHOD(socket_t, receive, status_t,
    private_socket_t *this, packet_t **packet)
{
    struct epoll_event ready;
    bool former = thread_cancelability(TRUE);
    int count = epoll_wait(this->epoll, &ready, 1, -1);

    thread_cancelability(former);
    if (count <= 0)
        return FAILED;
    *packet = ready.data.fd < 0 ? esp_gw_relay_receive(this->relay)
                                : read_socket(this, ready.data.fd);
    return *packet ? SUCCESS : FAILED;
}

/** Adds the source address to what is sent, which a host of several addresses would choose. */
static void set_source(struct msghdr *message, control_t *control, host_t *source)
{
    struct cmsghdr *part = &control->align;
    chunk_t address = source->get_address(source);

    memset(control, 0, sizeof *control);
    message->msg_control = control;
    if (source->get_family(source) == AF_INET) {
        struct in_pktinfo *info = (struct in_pktinfo *)CMSG_DATA(part);

        *part = (struct cmsghdr){CMSG_LEN(sizeof *info), IPPROTO_IP, IP_PKTINFO};
        memcpy(&info->ipi_spec_dst, address.ptr, sizeof info->ipi_spec_dst);
        message->msg_controllen = sizeof control->v4;
    } else {
        struct in6_pktinfo *info = (struct in6_pktinfo *)CMSG_DATA(part);

        *part = (struct cmsghdr){CMSG_LEN(sizeof *info), IPPROTO_IPV6, IPV6_PKTINFO};
        memcpy(&info->ipi6_addr, address.ptr, sizeof info->ipi6_addr);
        message->msg_controllen = sizeof control->v6;
    }
}

METHOD(socket_t, send_, status_t,
    private_socket_t *this, packet_t *packet)
{
    host_t *source = packet->get_source(packet), *peer = packet->get_destination(packet);
    chunk_t data = packet->get_data(packet);
    struct iovec part = {.iov_base = data.ptr, .iov_len = data.len};
    struct msghdr message = {
        .msg_name = peer->get_sockaddr(peer),
        .msg_namelen = *peer->get_sockaddr_len(peer),
        .msg_iov = &part,
        .msg_iovlen = 1,
    };
    int fd = peer->get_family(peer) == AF_INET ? this->v4 : this->v6;
    uint16_t port = source->get_port(source);
    control_t control;

    DBG2(DBG_NET, "sending packet: from %#H to %#H", source, peer);
    if (port && port != this->port) {
        esp_gw_relay_send(this->relay, packet);
        return SUCCESS;
    }
    if (!source->is_anyaddr(source))
        set_source(&message, &control, source);
    if (sendmsg(fd, &message, 0) == (ssize_t)data.len)
        return SUCCESS;
    DBG1(DBG_NET, "esp_gw: a message to %#H could not be sent: %s", peer, strerror(errno));
    return FAILED;
}

METHOD(socket_t, get_port, uint16_t,
    private_socket_t *this, bool nat_t)
{
    return nat_t ? esp_gw_relay_port(this->relay) : this->port;
}

METHOD(socket_t, supported_families, socket_family_t,
    private_socket_t *this)
{
    return (this->v4 >= 0 ? SOCKET_FAMILY_IPV4 : 0) | (this->v6 >= 0 ? SOCKET_FAMILY_IPV6 : 0);
}

static bool bind_socket(private_socket_t *this, int fd, int family)
{
    address_t address = {.any.sa_family = family};
    socklen_t size = family == AF_INET ? sizeof address.v4 : sizeof address.v6;
    int on = 1;

    if (family == AF_INET)
        address.v4.sin_port = htons(this->port);
    else
        address.v6.sin6_port = htons(this->port);
    if (family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0)
        return FALSE;
    if (family == AF_INET ? setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) < 0
                          : setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on) < 0)
        return FALSE;
    if (bind(fd, &address.any, size) < 0 || getsockname(fd, &address.any, &size) < 0)
        return FALSE;
    /* A port of 0 in the settings is any free one, of both families. */
    this->port = ntohs(family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
    return TRUE;
}

static bool watch(private_socket_t *this, int fd, int name)
{
    struct epoll_event readable = {.events = EPOLLIN, .data.fd = name};

    return epoll_ctl(this->epoll, EPOLL_CTL_ADD, fd, &readable) == 0;
}

/** A socket of the port for a family; -1 and a line if there is none. */
static int open_socket(private_socket_t *this, int family)
{
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP);

    if (fd >= 0 && bind_socket(this, fd, family) && watch(this, fd, fd)) {
        charon->kernel->bypass_socket(charon->kernel, fd, family);
        return fd;
    }
    DBG1(DBG_NET, "esp_gw: no IKE by IPv%d: port %d/udp: %s", family == AF_INET ? 4 : 6, this->port,
         strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

METHOD(socket_t, destroy, void,
    private_socket_t *this)
{
    if (this->v4 >= 0)
        close(this->v4);
    if (this->v6 >= 0)
        close(this->v6);
    if (this->epoll >= 0)
        close(this->epoll);
    free(this);
}

socket_t *esp_gw_socket_create(void)
{
    esp_gw_relay_t *relay = lib->get(lib, ESP_GW_RELAY);
    private_socket_t *this;

    if (!relay)
        return NULL;
    INIT(this,
        .public = {
            .receive = _receive,
            .send = _send_,
            .get_port = _get_port,
            .supported_families = _supported_families,
            .destroy = _destroy,
        },
        .relay = relay,
        .v4 = -1,
        .v6 = -1,
        .port = lib->settings->get_int(lib->settings, "%s.port", CHARON_UDP_PORT, lib->ns),
        .epoll = epoll_create1(EPOLL_CLOEXEC),
    );
    if (this->epoll >= 0 && watch(this, esp_gw_relay_fd(relay), -1)) {
        this->v4 = open_socket(this, AF_INET);
        this->v6 = open_socket(this, AF_INET6);
        if (this->v4 >= 0 || this->v6 >= 0)
            return &this->public;
    }
    destroy(this);
    return NULL;
}
