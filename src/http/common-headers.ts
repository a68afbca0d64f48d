/** What every response carries (contract §3), as names and values in turn. */
export function commonHeaders(requestId: string): string[] {
  return ['x-request-id', requestId, 'cache-control', 'no-store'];
}

export function setCommonHeaders(
  requestId: string,
  reply: { header(name: string, value: string): unknown },
): void {
  reply.header('x-request-id', requestId);
  reply.header('cache-control', 'no-store');
}
