/* Sends ready-made HTTP answers as fast as the kernel copies them, so that serving costs next to nothing.
 *
 *     cc -O2 -pthread -o streamserver streamserver.c
 *     ./streamserver FOLDER        prints the port it chose on 127.0.0.1, then serves until it is ended
 *
 * Whatever is asked for under /NAME, by GET or POST, the bytes of FOLDER/NAME are sent as they are (they begin with a
 * status line) and the connection is closed. One thread for each connection.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *folder;

static int find(int peer) {
    char head[32768], path[4096];
    size_t have = 0;
    head[0] = 0;
    while (!strstr(head, "\r\n\r\n") && have < sizeof head - 1) {
        ssize_t count = read(peer, head + have, sizeof head - 1 - have);
        if (count <= 0)
            return -1;
        have += (size_t)count;
        head[have] = 0;
    }
    char *name = strchr(head, '/');
    if (!name)
        return -1;
    name[strcspn(name, " ?\r")] = 0;
    if (strstr(name, "..") || (size_t)snprintf(path, sizeof path, "%s%s", folder, name) >= sizeof path)
        return -1;
    return open(path, O_RDONLY);
}

static void *answer(void *argument) {
    int peer = (int)(intptr_t)argument, file = find(peer);
    struct stat about;
    char rest[4096];
    if (file < 0 || fstat(file, &about) || !S_ISREG(about.st_mode)) {
        dprintf(peer, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    } else {
        for (off_t at = 0; at < about.st_size;)
            if (sendfile(peer, file, &at, (size_t)(about.st_size - at)) <= 0)
                break;
    }
    if (file >= 0)
        close(file);
    shutdown(peer, SHUT_WR);
    /* What the client still sends is read, or closing would reset the connection under its feet. */
    while (read(peer, rest, sizeof rest) > 0) {
    }
    close(peer);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", arguments[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int door = socket(AF_INET, SOCK_STREAM, 0);
    if (door < 0 || bind(door, (struct sockaddr *)&address, length) || listen(door, 64) ||
        getsockname(door, (struct sockaddr *)&address, &length)) {
        perror("listen");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    folder = arguments[1];
    for (;;) {
        pthread_t thread;
        int peer = accept(door, NULL, NULL);
        if (peer < 0)
            continue;
        if (pthread_create(&thread, NULL, answer, (void *)(intptr_t)peer))
            close(peer);
        else
            pthread_detach(thread);
    }
}
