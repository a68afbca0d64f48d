import type { IncomingMessage } from 'node:http';
import proxyAddr from '@fastify/proxy-addr';
import type { FastifyRequest } from 'fastify';
import { type Address, formatAddress, parseAddress, spellAddress } from '../domain/address.ts';

/** What stands for an address that is none. No list of addresses holds it: it fails closed. */
const UNKNOWN = 'unknown';

/**
 * The client's address in its one spelling: the socket's peer, or where that is a trusted proxy what it forwards.
 * A proxy may forward any text, a secret too; only an address goes on to logs, audit events and limits.
 */
export function addressOf(request: Pick<FastifyRequest, 'ip'>): string {
  return spellAddress(request.ip) ?? UNKNOWN;
}

/** The same for a request that Fastify has not seen. @param trusted addresses and CIDRs of proxies that are believed. */
export function createAddressReader(trusted: readonly string[]): (message: IncomingMessage) => string {
  if (trusted.length === 0) return peerAddressOf;
  const trusts = proxyAddr.compile([...trusted]);
  return (message) => addressOf({ ip: proxyAddr(message, trusts) });
}

/** The address at the other end of the connection, whoever that speaks for; `undefined` where it is not known any more. */
export function peerOf({ socket }: IncomingMessage): Address | undefined {
  return parseAddress(socket.remoteAddress ?? '');
}

export function peerAddressOf(message: IncomingMessage): string {
  const peer = peerOf(message);
  return peer === undefined ? UNKNOWN : formatAddress(peer);
}

/** What an address is limited by: itself, or its /64 for IPv6, since a client there has all of it to choose from. */
export function addressBlockOf(request: FastifyRequest): string {
  const address = parseAddress(request.ip ?? '');
  if (address === undefined) return UNKNOWN;
  return formatAddress(address.family === 4 ? address : { ...address, word2: 0, word3: 0 });
}
