import type { Permission } from '../../src/domain/scope.ts';

/** A route, with a request that a caller with its permission is answered 2xx to. */
export interface Route {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** As the document writes it. */
  readonly path: string;
  /** `null`: any service key. */
  readonly permission: Permission | null;
  readonly body?: unknown;
  /** The largest body, where it is not 64 KiB. */
  readonly maxBodyBytes?: number;
}

/** Every route that asks for a service key; conventions.test.ts holds it against the document. */
export const ROUTES: readonly Route[] = [
  { method: 'GET', path: '/v1/me', permission: null },
  { method: 'GET', path: '/v1/api-keys', permission: 'keys:read' },
  { method: 'GET', path: '/v1/api-keys/{id}', permission: 'keys:read' },
  { method: 'GET', path: '/v1/api-keys/{id}/rate-limit', permission: 'keys:read' },
  {
    method: 'POST',
    path: '/v1/api-keys',
    permission: 'keys:write',
    body: { workspace_id: 'ws_acme', name: 'Made by a test' },
  },
  { method: 'PATCH', path: '/v1/api-keys/{id}', permission: 'keys:write', body: { name: 'Renamed' } },
  {
    method: 'POST',
    path: '/v1/api-keys/{id}/rotate',
    permission: 'keys:write',
    body: { grace_period_seconds: 60 },
  },
  { method: 'POST', path: '/v1/api-keys/{id}/revoke', permission: 'keys:write', body: { reason: 'leaked' } },
  { method: 'DELETE', path: '/v1/api-keys/{id}', permission: 'keys:write' },
  { method: 'GET', path: '/v1/api-keys/{id}/usage', permission: 'keys:read' },
  { method: 'GET', path: '/v1/workspaces/{id}/usage', permission: 'keys:read' },
  { method: 'GET', path: '/v1/workspaces/{id}', permission: 'keys:read' },
  { method: 'PUT', path: '/v1/workspaces/{id}', permission: 'workspaces:write', body: { name: 'Acme' } },
  { method: 'POST', path: '/v1/workspaces/{id}/revoke-keys', permission: 'keys:write', body: {} },
  { method: 'GET', path: '/v1/request-logs', permission: 'keys:read' },
  { method: 'GET', path: '/v1/signals', permission: 'keys:read' },
  { method: 'GET', path: '/v1/audit-events', permission: 'audit:read' },
  { method: 'GET', path: '/v1/scopes', permission: 'keys:read' },
  { method: 'PUT', path: '/v1/scopes/{name}', permission: 'scopes:write', body: { implies: ['list'] } },
  { method: 'GET', path: '/v1/scopes/{name}', permission: 'keys:read' },
  { method: 'DELETE', path: '/v1/scopes/{name}', permission: 'scopes:write' },
  { method: 'POST', path: '/v1/introspect', permission: 'introspect', body: { key: 'no key at all' } },
  {
    method: 'POST',
    path: '/v1/usage-reports',
    permission: 'introspect',
    body: { reports: [] },
    maxBodyBytes: 1_048_576,
  },
];

/** The routes that read a body. */
export const BODY_ROUTES = ROUTES.filter(({ method }) => method !== 'GET');

/** The path with a key's id, a workspace's or a scope in its place. */
export function pathTo(
  { path }: Route,
  { keyId, workspaceId = 'ws_acme' }: { keyId: string; workspaceId?: string },
): string {
  return path
    .replace('{id}', path.startsWith('/v1/workspaces') ? workspaceId : keyId)
    .replace('{name}', 'read');
}
