/* Runs a program whose writes of super-packets to a TUN device fail with EINVAL, as those of some
   kernels do: a seccomp supervisor looks at gso_type in the virtio_net_hdr of each writev. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

union control {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
};

static void send_file(int to, int file)
{
    union control control = {0};
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof file);
    memcpy(CMSG_DATA(header), &file, sizeof file);
    if (sendmsg(to, &message, 0) < 0)
        exit(7);
}

static int receive_file(int from)
{
    union control control;
    char byte;
    int file;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    if (recvmsg(from, &message, 0) <= 0)
        exit(0);
    memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof file);
    return file;
}

static int is_super_packet(const struct seccomp_notif *call)
{
    char link[64], target[64] = {0};
    unsigned char vnet[10] = {0};
    struct iovec first, to = {&first, sizeof first};
    struct iovec from = {(void *)call->data.args[1], sizeof first};
    snprintf(link, sizeof link, "/proc/%d/fd/%d", (int)call->pid, (int)call->data.args[0]);
    if (readlink(link, target, sizeof target - 1) <= 0 || strcmp(target, "/dev/net/tun"))
        return 0;
    if (process_vm_readv(call->pid, &to, 1, &from, 1, 0) <= 0)
        return 0;
    to = (struct iovec){vnet, sizeof vnet};
    from = (struct iovec){first.iov_base, sizeof vnet};
    return process_vm_readv(call->pid, &to, 1, &from, 1, 0) == sizeof vnet && vnet[1] != 0;
}

static void supervise(int listener)
{
    for (;;) {
        struct seccomp_notif call = {0};
        struct seccomp_notif_resp answer = {0};
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) {
            if (errno == EINTR || errno == ENOENT)
                continue;
            exit(0);
        }
        answer.id = call.id;
        if (is_super_packet(&call))
            answer.error = -EINVAL;
        else
            answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
}

int main(int argc, char **argv)
{
    int pair[2];
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_writev, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {4, filter};
    if (argc < 2 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        return 9;
    pid_t parent = getpid();
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            return 0;
        close(pair[0]);
        supervise(receive_file(pair[1]));
    }
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                           SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0)
        return 8;
    send_file(pair[0], listener);
    close(listener);
    close(pair[0]);
    close(pair[1]);
    execvp(argv[1], argv + 1);
    return 6;
}
