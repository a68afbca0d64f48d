import type { AddressInfo } from 'node:net';
import type { TestApp } from '../support/app.ts';

/** Puts a test app on a real socket; it is closed with the app. Answers the port. */
export async function listen(app: TestApp, host = '127.0.0.1'): Promise<number> {
  await app.app.listen({ host, port: 0 });
  return (app.app.server.address() as AddressInfo).port;
}
