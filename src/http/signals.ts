import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { entryIdFromUuid } from '../domain/entry-id.ts';
import { SIGNAL_RULES, type SignalRule, type SignalThresholds } from '../domain/signal.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import { foreignWorkspace } from '../lifecycle/key-rules.ts';
import type { Database } from '../storage/database.ts';
import { LOG_CODES, type LogCode } from '../storage/request-logs.ts';
import { listSignals, type SignalPlace, type StoredSignal } from '../storage/signals.ts';
import { type Callers, callerOf } from './callers.ts';
import type { CursorCodec } from './cursor.ts';
import { pageBy, pageQuery } from './page.ts';
import * as schemas from './schemas.ts';

const MINUTE_MS = 60_000;

const listQuery = z.strictObject({
  workspace_id: schemas.workspaceId.optional().describe('Signals about keys of this workspace.'),
  rule: z
    .enum(SIGNAL_RULES, `must be one of: ${SIGNAL_RULES.join(', ')}`)
    .optional()
    .describe('Signals of this rule; absent: of all.'),
  ...pageQuery,
});

const logCodes = LOG_CODES as readonly [LogCode, ...LogCode[]];
const lastUsed = schemas.timeOutput.nullable().describe('When it was last used; `null`: never.');
const createdAt = schemas.timeOutput.describe('When the key was made.');
const since = (when: string) => schemas.timeOutput.describe(when);
const workspaceId = z.string().describe('The workspace of the key.');
const ofNoAddress = z.null().describe('It is about no address.');
const days = (what: string) => z.int().describe(what);

const ofKey = { workspace_id: workspaceId, key_id: schemas.keyId, ip: ofNoAddress };

const THRESHOLD = 'From when on it is a signal: settings of the deployment.';
const EVIDENCE = 'What the rule saw.';

const signalOutput = z
  .discriminatedUnion('rule', [
    z
      .object({
        rule: z.literal('unused').describe('An active key that nobody uses.'),
        threshold: z.object({ unused_days: days('Whole days of UTC without a use.') }).describe(THRESHOLD),
        ...ofKey,
        since: since('When it had not been used for so long.'),
        evidence: z.object({ created_at: createdAt, last_used: lastUsed }).describe(EVIDENCE),
      })
      .meta({ id: 'UnusedSignal', description: 'An active key that was not used for long.' }),
    z
      .object({
        rule: z.literal('rotation_due').describe('An active key that is old.'),
        threshold: z
          .object({ rotation_due_days: days('The age at which a key is due for rotation.') })
          .describe(THRESHOLD),
        ...ofKey,
        since: since('When it became due.'),
        evidence: z.object({ created_at: createdAt, last_used: lastUsed }).describe(EVIDENCE),
      })
      .meta({ id: 'RotationDueSignal', description: 'An active key that is due for rotation.' }),
    z
      .object({
        rule: z.literal('expiring').describe('An active key without a successor that ends soon.'),
        threshold: z
          .object({ expiring_days: days('How long before its expiry a key is told of.') })
          .describe(THRESHOLD),
        ...ofKey,
        since: since('When its expiry came that near.'),
        evidence: z
          .object({
            expires_at: schemas.timeOutput.describe('From then on the key is refused.'),
            last_used: lastUsed,
          })
          .describe(EVIDENCE),
      })
      .meta({ id: 'ExpiringSignal', description: 'An active key that expires soon.' }),
    z
      .object({
        rule: z.literal('growth').describe("A key's requests of an hour against those of its own last week."),
        threshold: z
          .object({
            factor: z.int().describe('So many times the requests of the busiest hour of the week before.'),
            minimum_requests: z.int().describe('And so many requests at least.'),
          })
          .describe(THRESHOLD),
        ...ofKey,
        since: since('The beginning of the hour.'),
        evidence: z
          .object({
            requests: z.int().describe('Introspections of the key within that hour, allowed and refused.'),
            busiest_hour_before: z.int().describe('The same of the busiest hour of the week before.'),
          })
          .describe(EVIDENCE),
      })
      .meta({ id: 'GrowthSignal', description: "A key's requests have suddenly grown." }),
    z
      .object({
        rule: z.literal('new_address').describe('A key that is in use was used from somewhere else.'),
        threshold: z
          .object({ recent_days: days('For how long a new address is told of.') })
          .describe(THRESHOLD),
        workspace_id: workspaceId,
        key_id: schemas.keyId,
        ip: z.string().describe('The address.'),
        since: since('The first use from there.'),
        evidence: z
          .object({
            log_id: z.string().describe('The entry of the request log.'),
            code: z.enum(logCodes).describe('What that use came to.'),
          })
          .describe(EVIDENCE),
      })
      .meta({ id: 'NewAddressSignal', description: 'A key was used from an address that is new for it.' }),
    z
      .object({
        rule: z.literal('failed_authentication').describe('Somebody at an address tries strings.'),
        threshold: z
          .object({
            failures: z.int().describe('So many failures within a window.'),
            window_minutes: z.int().describe('The length of a window; windows are aligned to the epoch.'),
          })
          .describe(THRESHOLD),
        workspace_id: z.null().describe('What is no key is of no workspace.'),
        key_id: z.null().describe('What is no key has no id.'),
        ip: z.string().describe('The address; of IPv6 its /64.'),
        since: since('The beginning of the window.'),
        evidence: z
          .object({
            until: schemas.timeOutput.describe('The end of the window.'),
            introspections: z
              .int()
              .describe('Introspections from there that came to `invalid`, by `request.ip`.'),
            calls: z.int().describe("Calls of Claviger's own API from there without a valid service key."),
          })
          .describe(EVIDENCE),
      })
      .meta({ id: 'FailedAuthenticationSignal', description: 'A burst of failed authentications.' }),
  ])
  .meta({
    id: 'Signal',
    description:
      'Something that deserves a look: the rule that says so, its threshold, which is a setting, and what it saw.',
  });

/** `GET /v1/signals` (contract §8). */
export function registerSignalRoutes({
  callers,
  database,
  cursors,
  thresholds,
}: {
  callers: Callers;
  database: Database;
  cursors: CursorCodec;
  thresholds: SignalThresholds;
}): void {
  callers.scope('keys:read', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().get(
      '/v1/signals',
      {
        schema: {
          tags: ['Watching'],
          operationId: 'listSignals',
          summary: 'List what deserves a look, newest first',
          description:
            'Active keys that are unused, due for rotation or about to expire; and, of the last days, sudden growth of requests, new addresses and bursts of failed authentication. Bursts belong to no workspace and are shown to callers that are not bound to any. Later releases may add rules.',
          security: schemas.callerWith('keys:read'),
          querystring: listQuery,
          response: {
            200: schemas.list(signalOutput, 'signals').describe('A page of signals.'),
            ...schemas.problems(schemas.CALLER_PROBLEMS),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const { workspace_id, rule } = request.query;
        if (workspace_id !== undefined && !reaches(caller, workspace_id)) {
          throw foreignWorkspace(workspace_id);
        }
        const page = pageBy(cursors, request.query, { listName: 'signals', ...BY_PLACE });
        const found = await database.read((executor) =>
          listSignals(executor, {
            rules: rule === undefined ? SIGNAL_RULES : [rule],
            workspaceIds: workspace_id === undefined ? caller.allowedWorkspaces : [workspace_id],
            includeSystem: reaches(caller, SYSTEM_WORKSPACE),
            thresholds,
            after: page.after,
            limit: page.limit,
            nowMs: caller.now,
          }),
        );
        const { shown, pagination } = page.answer<StoredSignal>(found, (signal) => signal);
        return {
          success: true as const,
          data: shown.map((signal) => viewOf(signal, thresholds)),
          pagination,
        };
      },
    );
  });
}

const BY_PLACE = {
  toBytes: ({ sinceMs, rule, tie }: SignalPlace) => Buffer.from(`${sinceMs} ${rule} ${tie}`),
  fromBytes(bytes: Uint8Array): SignalPlace {
    const [sinceMs, rule, tie] = Buffer.from(bytes).toString().split(' ');
    // A cursor of this list is its own work: its MAC was checked.
    return { sinceMs: Number(sinceMs), rule: rule as SignalRule, tie: tie ?? '' };
  },
};

function viewOf(signal: StoredSignal, thresholds: SignalThresholds): z.input<typeof signalOutput> {
  const { growth, burst } = thresholds;
  const since = schemas.fromTime(signal.sinceMs);
  if (signal.rule === 'failed_authentication') {
    return {
      rule: signal.rule,
      threshold: { failures: burst.failures, window_minutes: burst.windowMinutes },
      workspace_id: null,
      key_id: null,
      ip: signal.ip,
      since,
      evidence: {
        until: schemas.fromTime(signal.sinceMs + burst.windowMinutes * MINUTE_MS),
        introspections: signal.introspections,
        calls: signal.calls,
      },
    };
  }
  const ofKey = { workspace_id: signal.workspaceId, key_id: signal.keyId, ip: null, since };
  switch (signal.rule) {
    case 'unused':
      return {
        ...ofKey,
        rule: signal.rule,
        // Without one there are no such signals.
        threshold: { unused_days: thresholds.unusedDays ?? 0 },
        evidence: {
          created_at: schemas.fromTime(signal.createdAt),
          last_used: schemas.fromTime(signal.lastUsed),
        },
      };
    case 'rotation_due':
      return {
        ...ofKey,
        rule: signal.rule,
        threshold: { rotation_due_days: thresholds.rotationDueDays },
        evidence: {
          created_at: schemas.fromTime(signal.createdAt),
          last_used: schemas.fromTime(signal.lastUsed),
        },
      };
    case 'expiring':
      return {
        ...ofKey,
        rule: signal.rule,
        threshold: { expiring_days: thresholds.expiringDays },
        evidence: {
          expires_at: schemas.fromTime(signal.expiresAt),
          last_used: schemas.fromTime(signal.lastUsed),
        },
      };
    case 'growth':
      return {
        ...ofKey,
        rule: signal.rule,
        threshold: { factor: growth.factor, minimum_requests: growth.minimum },
        evidence: { requests: signal.requests, busiest_hour_before: signal.busiest },
      };
    case 'new_address':
      return {
        ...ofKey,
        rule: signal.rule,
        threshold: { recent_days: thresholds.recentDays },
        ip: signal.ip,
        evidence: { log_id: entryIdFromUuid('log', signal.logId), code: signal.code },
      };
  }
}
