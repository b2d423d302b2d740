// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Where a packet's time goes on its way through the host, from boundary to boundary.
 *
 * A packet is known by its skb's address, which chooses a slot of an array; the slot is believed only if it names the same
 * address and the right last boundary. Nothing is searched, inserted or deleted: what is dropped on the way is overwritten.
 *
 *   receive: driver -> stack -> ip -> local (or forward) -> transport -> socket -> application
 *   send:    application -> ip -> qdisc -> driver -> handed over -> done
 *
 * Between socket and application, and application and ip, TCP merges and segments skbs: there the socket is the key, and
 * the place in the stream says which packet it was (fifo.h). hooks.h says which hook calls which boundary's body.
 */
#include "nettop.h"
#include "hist.h"
#include "load.h"
#include "fifo.h"
#include "focus.h"
#define FILTER_SK_BUFF
#include "filter.h"
#include "slot.h"
#include "record.h"
#include "sock.h"
#include "rx.h"
#include "rx_queue.h"
#include "rx_sock.h"
#include "tx_sock.h"
#include "tx.h"
#include "ip.h"
#include "hooks.h"
