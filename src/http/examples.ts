import type { InputFault } from '../domain/errors.ts';
import { oauthExamples } from './oauth-examples.ts';
import { PROBLEM_CODES, PROBLEMS, type ProblemCode } from './problem.ts';

/*
 * The examples of the OpenAPI document, by operation. /docs fills its forms with the first one of each, so that one
 * works as it stands. Tests hold all of them against the schemas.
 */

export type Examples = Record<string, { summary: string; value: unknown }>;

interface OperationExamples {
  /** By media type. */
  readonly request?: Readonly<Record<string, Examples>>;
  /** By status. Problems have theirs below. */
  readonly responses: Readonly<Record<number, Examples>>;
}

const JSON_TYPE = 'application/json';
const REQUEST_ID = 'req_5f0c1d7e9a3b24680c1';
const KEY_ID = 'key_01ke6c2y6pfyc8m3q0v7rt5x4n';
const PREDECESSOR_ID = 'key_01kb2n8w3xe5s9h4t6j0d1g7qz';
const SERVICE_KEY_ID = 'key_01ke6bzr4vf7sa2d9tq3mh8j5w';
/** Reads like a token and can be none: its checksum is wrong. */
export const EXAMPLE_TOKEN = 'ck_live_0EXAMPLE1EXAMPLE2EXAMPLE3EXAMPLE4EXAMPLE5EXAMPLE6EXAMPLE7EXAMPx7Qa';

const key = {
  id: KEY_ID,
  prefix: 'ck_live_',
  hint: 'ck_live_…x7Qa',
  workspace_id: 'ws_acme',
  name: 'Production data warehouse',
  environment: 'live',
  scopes: ['read'],
  status: 'active',
  restrictions: null,
  rate_limit: { limit: 1000, window_seconds: 3600 },
  metadata: { team: 'data' },
  created_by: 'usr_42',
  created_at: '2026-01-02T03:04:05.678Z',
  expires_at: null,
  revoked_at: null,
  revoked_reason: null,
  rotated_from: null,
  rotated_to: null,
  rotation_due_at: '2026-04-02T03:04:05.678Z',
  last_used: null,
  last_used_ip: null,
};

const restrictedKey = {
  ...key,
  restrictions: {
    allowed_ips: ['203.0.113.0/24'],
    allowed_referrers: ['https://*.example.com/*'],
    allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
  },
  expires_at: '2030-01-31T12:00:00.000Z',
};

const propagation = { instances: 3, confirmed: 3, fenced: 0, waited_ms: 4 };

const workspace = {
  id: 'ws_acme',
  name: 'Acme Corp.',
  limits: { max_active_keys: 10, allowed_scopes: ['read', 'write'], max_key_lifetime_days: 90 },
  rate_limit: { limit: 10_000, window_seconds: 3600 },
  disabled: false,
  created_at: '2026-01-02T03:04:05.678Z',
  updated_at: '2026-01-02T03:04:05.678Z',
};
const { name: workspaceName, limits, rate_limit: workspaceLimit } = workspace;

const figures = {
  totals: { active: 12, insufficient_scope: 3 },
  success_rate: 0.8,
  response_times: { count: 12, mean_ms: 20.4, p50_ms: 18.109, p95_ms: 40.31, p99_ms: 41.125 },
};
const usage = { ...figures, buckets: [{ start: '2026-02-03T04:00:00.000Z', ...figures }] };

const revocation = {
  request: { [JSON_TYPE]: one('A reason', { reason: 'leaked' }) },
  responses: {
    200: one('Revoked', {
      success: true,
      message: 'API key revoked successfully',
      data: {
        ...key,
        status: 'revoked',
        revoked_at: '2026-02-03T04:05:06.789Z',
        revoked_reason: 'leaked',
      },
      propagation,
    }),
  },
};

const patch = {
  name: { summary: 'A new name', value: { name: 'Staging data warehouse' } },
  settings: {
    summary: 'Less time, no restriction of referrers, other metadata',
    value: {
      expires_at: '2030-01-31T12:00:00Z',
      restrictions: { allowed_referrers: null },
      rate_limit: { limit: 500 },
      metadata: { team: null, owner: 'analytics' },
    },
  },
};

const scope = {
  name: 'write',
  description: 'Change contacts',
  implies: ['read'],
  grants: [{ methods: ['POST', 'PATCH', 'DELETE'], path: '/*' }],
  created_at: '2026-01-02T03:04:05.678Z',
  updated_at: '2026-01-02T03:04:05.678Z',
};

const readScope = {
  ...scope,
  name: 'read',
  description: 'Read contacts',
  implies: [],
  grants: [{ methods: ['GET'], path: '/*' }],
};

export const EXAMPLES: Readonly<Record<string, OperationExamples>> = {
  listKeys: {
    responses: {
      200: one('A page', { success: true, data: [key], pagination: { next_cursor: null, has_more: false } }),
    },
  },
  getRateLimit: {
    responses: {
      200: one('A tenth is spent', {
        success: true,
        data: {
          limit: 1000,
          remaining: 900,
          reset: 1767326400,
          window_seconds: 3600,
          workspace: { limit: 50_000, remaining: 41_338, reset: 1767312000, window_seconds: 86_400 },
        },
      }),
    },
  },
  getKey: { responses: { 200: one('A key', { success: true, data: key }) } },
  createKey: {
    request: {
      [JSON_TYPE]: {
        simple: {
          summary: 'A key that may read',
          value: {
            workspace_id: 'ws_acme',
            name: 'Production data warehouse',
            scopes: ['read'],
            metadata: { team: 'data' },
            created_by: 'usr_42',
          },
        },
        restricted: {
          summary: 'Every setting',
          value: {
            workspace_id: 'ws_acme',
            name: 'Production data warehouse',
            environment: 'live',
            scopes: ['read'],
            expires_at: '2030-01-31T12:00:00Z',
            restrictions: restrictedKey.restrictions,
            rate_limit: { limit: 1000, window_seconds: 3600 },
            metadata: { team: 'data' },
            created_by: 'usr_42',
          },
        },
        serviceKey: {
          summary: 'A service key for a gateway',
          value: {
            workspace_id: 'system',
            name: 'Gateway',
            scopes: ['introspect'],
            restrictions: { allowed_ips: ['10.0.0.0/8'], allowed_workspaces: ['ws_acme'] },
          },
        },
      },
    },
    responses: {
      201: {
        simple: {
          summary: 'A key that may read',
          value: { success: true, data: { ...key, key: EXAMPLE_TOKEN } },
        },
        restricted: {
          summary: 'Every setting',
          value: { success: true, data: { ...restrictedKey, key: EXAMPLE_TOKEN } },
        },
      },
    },
  },
  updateKey: {
    request: { [JSON_TYPE]: patch, 'application/merge-patch+json': patch },
    responses: {
      200: one('The key from now on', {
        success: true,
        data: { ...key, name: 'Staging data warehouse' },
        propagation,
      }),
    },
  },
  rotateKey: {
    request: {
      [JSON_TYPE]: {
        grace: { summary: 'The old key lives on for a week', value: { grace_period_seconds: 604_800 } },
        atOnce: { summary: 'The old key is revoked at once', value: { grace_period_seconds: 0 } },
      },
    },
    responses: {
      201: one('The successor', {
        success: true,
        data: { ...key, rotated_from: PREDECESSOR_ID, key: EXAMPLE_TOKEN },
        propagation,
      }),
    },
  },
  deleteKey: revocation,
  revokeKey: revocation,
  getWorkspace: { responses: { 200: one('A workspace', { success: true, data: workspace }) } },
  putWorkspace: {
    request: {
      [JSON_TYPE]: {
        plan: {
          summary: 'A plan',
          value: { name: workspaceName, limits, rate_limit: workspaceLimit },
        },
        none: {
          summary: 'A plan without API keys',
          value: { name: workspaceName, limits: { max_active_keys: 0 } },
        },
        disabled: {
          summary: 'All its keys inactive',
          value: { name: workspaceName, limits, rate_limit: workspaceLimit, disabled: true },
        },
      },
    },
    responses: {
      200: one('The workspace from now on', { success: true, data: workspace, propagation }),
    },
  },
  revokeWorkspaceKeys: {
    request: {
      [JSON_TYPE]: {
        creator: {
          summary: 'The keys that one person asked for',
          value: { reason: 'left the company', created_by: 'usr_42' },
        },
        all: { summary: 'All keys', value: {} },
      },
    },
    responses: { 200: one('How many', { success: true, data: { revoked: 3 }, propagation }) },
  },
  listScopes: {
    responses: {
      200: one('The catalogue', {
        success: true,
        data: [scope, readScope],
        pagination: { next_cursor: null, has_more: false },
      }),
    },
  },
  getScope: { responses: { 200: one('An entry', { success: true, data: scope }) } },
  putScope: {
    request: {
      [JSON_TYPE]: {
        read: {
          summary: '`read`: what GET and HEAD need',
          value: { description: 'Read contacts', grants: [{ methods: ['GET'], path: '/*' }] },
        },
        write: {
          summary: '`write`: what changes need; it implies `read`',
          value: {
            description: 'Change contacts',
            implies: ['read'],
            grants: [{ methods: ['POST', 'PATCH', 'DELETE'], path: '/*' }],
          },
        },
        plain: { summary: 'A scope that means just itself', value: {} },
      },
    },
    responses: { 200: one('The entry from now on', { success: true, data: scope, propagation }) },
  },
  deleteScope: {
    request: { [JSON_TYPE]: one('Nothing', {}) },
    responses: { 200: one('The entry as it was', { success: true, data: scope, propagation }) },
  },
  getKeyUsage: {
    responses: { 200: one('The last 24 hours, of which one is shown', { success: true, data: usage }) },
  },
  getWorkspaceUsage: {
    responses: { 200: one('The last 24 hours, of which one is shown', { success: true, data: usage }) },
  },
  reportUsage: {
    request: {
      [JSON_TYPE]: {
        nothing: { summary: 'Nothing', value: { reports: [] } },
        one: {
          summary: 'A request and its response',
          value: {
            reports: [
              {
                key_id: KEY_ID,
                at: '2026-02-03T04:05:06.789Z',
                status: 200,
                duration_ms: 12.5,
                method: 'GET',
                path: '/contacts/17',
              },
            ],
          },
        },
      },
    },
    responses: { 200: one('Written', { success: true, data: { accepted: 1 } }) },
  },
  introspect: {
    request: {
      [JSON_TYPE]: {
        scopes: {
          summary: 'Is this a key that may read?',
          value: { key: EXAMPLE_TOKEN, scopes: ['read'] },
        },
        request: {
          summary: 'May it make this request?',
          value: {
            key: EXAMPLE_TOKEN,
            scopes: ['read'],
            workspace_id: 'ws_acme',
            environment: 'live',
            cost: 1,
            request: {
              ip: '203.0.113.9',
              method: 'GET',
              path: '/contacts/17',
              referrer: 'https://app.example.com/x',
            },
          },
        },
      },
      'application/x-www-form-urlencoded': one('RFC 7662', { token: EXAMPLE_TOKEN }),
    },
    responses: {
      200: {
        active: {
          summary: 'The key may do this',
          value: {
            active: true,
            key_id: KEY_ID,
            workspace_id: 'ws_acme',
            name: 'Production data warehouse',
            environment: 'live',
            scopes: ['read'],
            created_at: '2026-01-02T03:04:05.678Z',
            expires_at: null,
            metadata: { team: 'data' },
            rate_limit: { limit: 1000, remaining: 999, reset: 1767326400, window_seconds: 3600 },
          },
        },
        rateLimited: {
          summary: 'It has been used too often',
          value: {
            active: false,
            reason: {
              code: 'rate_limited',
              status: 429,
              detail: 'The rate limit of 1000 in 3600 s leaves too little for this.',
            },
            rate_limit: { limit: 1000, remaining: 0, reset: 1767326400, window_seconds: 3600 },
            retry_after: 1542,
          },
        },
        inactive: {
          summary: 'It may not',
          value: {
            active: false,
            reason: { code: 'revoked', status: 401, detail: 'The key was revoked on 2026-02-03.' },
          },
        },
        standardActive: {
          summary: 'RFC 7662: a valid token',
          value: {
            active: true,
            scope: 'read',
            client_id: KEY_ID,
            sub: 'ws_acme',
            token_type: 'Bearer',
            iat: 1767323045,
          },
        },
        standardInactive: { summary: 'RFC 7662: any other', value: { active: false } },
      },
    },
  },
  listRequestLogs: {
    responses: {
      200: one('A page', {
        success: true,
        data: [
          {
            id: 'log_01kgh9y0t2f8wakr5pmd7q3v6j',
            at: '2026-02-03T04:05:05.123Z',
            type: 'introspection',
            key_id: KEY_ID,
            workspace_id: 'ws_acme',
            code: 'insufficient_scope',
            status: 403,
            duration_ms: null,
            ip: '203.0.113.9',
            ip_first_seen: true,
            method: 'GET',
            path: '/contacts/17',
            caller: SERVICE_KEY_ID,
            request_id: REQUEST_ID,
          },
        ],
        pagination: { next_cursor: null, has_more: false },
      }),
    },
  },
  listSignals: {
    responses: {
      200: one('A page', {
        success: true,
        data: [
          {
            rule: 'growth',
            threshold: { factor: 10, minimum_requests: 1000 },
            workspace_id: 'ws_acme',
            key_id: KEY_ID,
            ip: null,
            since: '2026-02-03T04:00:00.000Z',
            evidence: { requests: 18_240, busiest_hour_before: 310 },
          },
          {
            rule: 'failed_authentication',
            threshold: { failures: 100, window_minutes: 10 },
            workspace_id: null,
            key_id: null,
            ip: '198.51.100.23',
            since: '2026-02-03T03:50:00.000Z',
            evidence: { until: '2026-02-03T04:00:00.000Z', introspections: 412, calls: 0 },
          },
          {
            rule: 'unused',
            threshold: { unused_days: 90 },
            workspace_id: 'ws_acme',
            key_id: KEY_ID,
            ip: null,
            since: '2026-02-03T00:00:00.000Z',
            evidence: { created_at: '2025-06-01T12:00:00.000Z', last_used: '2025-11-04T09:21:37.004Z' },
          },
        ],
        pagination: { next_cursor: null, has_more: false },
      }),
    },
  },
  listAuditEvents: {
    responses: {
      200: one('A page', {
        success: true,
        data: [
          {
            id: 'evt_01kgh9y1c5e0qbrv6nkx3w8m2d',
            at: '2026-02-03T04:05:06.789Z',
            action: 'key.revoked',
            actor: SERVICE_KEY_ID,
            target: { type: 'key', id: KEY_ID },
            workspace_id: 'ws_acme',
            key_id: KEY_ID,
            before: { revoked_at: null, revoked_reason: null },
            after: { revoked_at: '2026-02-03T04:05:06.789Z', revoked_reason: 'leaked' },
            address: '198.51.100.7',
            request_id: REQUEST_ID,
          },
        ],
        pagination: { next_cursor: null, has_more: false },
      }),
    },
  },
  reportLeaks: {
    request: { [JSON_TYPE]: one('A string that was found', { tokens: [EXAMPLE_TOKEN] }) },
    responses: { 202: one('Received', { success: true, data: { received: 1 } }) },
  },
  reportGithubLeaks: {
    request: {
      [JSON_TYPE]: one('A match', [
        {
          token: EXAMPLE_TOKEN,
          type: 'claviger_api_key',
          url: 'https://github.com/octocat/Hello-World/blob/main/config.yml',
          source: 'content',
        },
      ]),
    },
    responses: {
      200: one('Labels', [
        {
          token_hash: '2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae',
          token_type: 'claviger_api_key',
          label: 'true_positive',
        },
      ]),
    },
  },
  getMe: {
    responses: {
      200: one('A service key', {
        success: true,
        data: {
          id: KEY_ID,
          name: 'Gateway',
          permissions: ['introspect'],
          restrictions: { allowed_ips: ['10.0.0.0/8'], allowed_workspaces: ['ws_acme'] },
          expires_at: null,
        },
      }),
    },
  },
  ...oauthExamples({ keyId: KEY_ID, token: EXAMPLE_TOKEN }),
  healthz: { responses: { 200: one('Alive', { status: 'ok' }) } },
  readyz: {
    responses: {
      200: {
        leased: { summary: 'Answers from memory', value: { status: 'ready', lease_age_ms: 412 } },
        unleased: { summary: 'Asks the database each time', value: { status: 'ready', lease_age_ms: null } },
      },
    },
  },
  metrics: {
    responses: {
      200: one("Prometheus' text format", '# TYPE claviger_up gauge\nclaviger_up 1\n'),
    },
  },
};

/** What a caller reads in `detail`, for one case of each code. */
const DETAILS: Readonly<Record<ProblemCode, string>> = {
  invalid_request: 'The request breaks a rule of this endpoint; see `errors`.',
  unauthorized: 'The credential is not a valid service key.',
  forbidden: 'This service key lacks the permission "keys:write".',
  limit_reached: 'The plan of this workspace allows 10 active keys, and it has that many.',
  not_found: 'There is no such key.',
  key_not_active: 'The key is revoked and cannot be changed.',
  idempotency_in_flight: 'The first request with this Idempotency-Key is still being worked on.',
  last_admin: 'This is the last active admin key. Make another one first.',
  payload_too_large: 'The body is larger than 64 KiB.',
  unsupported_media_type: 'Send the body as application/json with a matching Content-Type.',
  idempotency_mismatch: 'This Idempotency-Key was used for another request.',
  rate_limited: 'Too many requests to Claviger; see Retry-After.',
  overloaded: 'Too much work is queued; see Retry-After.',
  unavailable: 'The database cannot be reached.',
  invalid: 'This is not a valid API key.',
  revoked: 'The key was revoked on 2026-02-03.',
  expired: 'The key expired on 2026-02-03.',
  workspace_disabled: 'The workspace of this key is disabled.',
  wrong_workspace: 'The key belongs to another workspace than the one expected.',
  wrong_environment: 'The key belongs to another environment than the one expected.',
  ip_not_allowed: 'This key may not be used from the address in "request.ip".',
  referrer_not_allowed: 'This key may not be used from the web page in "request.referrer".',
  endpoint_not_allowed: 'This key may not be used for the method and path of this request.',
  insufficient_scope: 'The key lacks the scope "read".',
};

const FAULTS: readonly InputFault[] = [{ path: 'name', message: 'must have 1 to 120 characters' }];

/** One problem of each code. */
export const PROBLEM_EXAMPLES: Examples = Object.fromEntries(
  PROBLEM_CODES.map((code) => {
    const { status, title } = PROBLEMS[code];
    const value = {
      type: `urn:claviger:error:${code}`,
      title,
      status,
      detail: DETAILS[code],
      instance: `urn:claviger:request:${REQUEST_ID}`,
      success: false,
      code,
      request_id: REQUEST_ID,
      ...(code === 'invalid_request' ? { errors: FAULTS } : {}),
    };
    return [code, { summary: title, value }];
  }),
);

function one(summary: string, value: unknown): Examples {
  return { example: { summary, value } };
}
