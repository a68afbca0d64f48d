import type { IncomingMessage } from 'node:http';
import { Failure } from '../domain/errors.ts';

/** RFC 9112 §3.2: one Host. Where there are two, a proxy before us may have gone by the other. */
export function faultOfHost({ rawHeaders, httpVersion }: IncomingMessage): Failure | undefined {
  let hosts = 0;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index];
    if (name?.length === 4 && name.toLowerCase() === 'host') hosts++;
  }
  // Without one: HTTP/1.0 alone. Node also reads 0.9, a line without a version.
  if (hosts === 1 || (hosts === 0 && httpVersion === '1.0')) return undefined;
  return new Failure('invalid_request', 'An HTTP/1.1 request needs a Host header, and just one.');
}
