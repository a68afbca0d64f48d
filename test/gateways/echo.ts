import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

/** What the service behind a gateway received. */
export interface Received {
  readonly method: string;
  readonly url: string;
  /** Names as they came, in lower case, each with all its values. */
  readonly headers: Readonly<Record<string, string[]>>;
  readonly bytes: number;
  readonly sha256: string;
}

export interface Echo {
  readonly port: number;
  /** Everything that came, in its order. */
  readonly received: Received[];
  close(): Promise<void>;
}

/** A service that answers with what it received, and speaks back what is said to it behind an upgrade. */
export async function startEcho(): Promise<Echo> {
  const received: Received[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((request, response) => {
    const hash = createHash('sha256');
    let bytes = 0;
    request.on('data', (chunk: Buffer) => {
      hash.update(chunk);
      bytes += chunk.length;
    });
    request.on('end', () => {
      const { method = '', url = '', rawHeaders } = request;
      const one = { method, url, headers: gathered(rawHeaders), bytes, sha256: hash.digest('hex') };
      received.push(one);
      response.writeHead(200, { 'content-type': 'application/json', 'x-from': 'service' });
      response.end(JSON.stringify(one));
    });
  });
  server.on('upgrade', (request, socket) => {
    received.push({
      method: request.method ?? '',
      url: request.url ?? '',
      headers: gathered(request.rawHeaders),
      bytes: 0,
      sha256: '',
    });
    socket.on('error', () => socket.destroy());
    socket.write(
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-From: service\r\n\r\n',
    );
    socket.pipe(socket);
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    received,
    async close() {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, 'close');
    },
  };
}

function gathered(rawHeaders: readonly string[]): Record<string, string[]> {
  const headers: Record<string, string[]> = {};
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index]?.toLowerCase() ?? '';
    headers[name] = [...(headers[name] ?? []), rawHeaders[index + 1] ?? ''];
  }
  return headers;
}
