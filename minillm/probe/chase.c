/* Nothing but following pointers: each address is known only when the one before it has come. */
void *chase(void **p, long n) {
    while (n--)
        p = (void **)*p;
    return p;
}
