import type { Ask, Counter, Grant, QuotaNotice } from '../../src/storage/rate-windows.ts';

/** A row of `rate_windows`. */
export interface CounterRow {
  readonly windowStart: number;
  readonly leased: number;
  readonly stocked: number;
  readonly wanted: boolean;
}

export const NEW_COUNTER: CounterRow = { windowStart: 0, leased: 0, stocked: 0, wanted: false };

/** What `exchangeQuota` does to one row at this time of the database (ms), in plain words; the SQL is held against it. */
export function exchangeOf(
  row: CounterRow,
  ask: Ask,
  nowMs: number,
): { row: CounterRow; grant: Grant; notices: QuotaNotice[] } {
  const lengthMs = ask.windowSeconds * 1000;
  const byClock = Math.floor(nowMs / lengthMs) * ask.windowSeconds;
  const isAhead = row.windowStart === byClock + ask.windowSeconds;
  const windowStart = isAhead ? row.windowStart : byClock;
  const { leased, stocked, wanted } = row.windowStart === windowStart ? row : NEW_COUNTER;
  const isOfWindow = ask.windowStart === windowStart && row.windowStart === windowStart;
  const before = Math.max(0, leased - (isOfWindow ? ask.handedIn : 0));
  const inStock = Math.max(0, stocked - (isOfWindow ? ask.unstocked : 0));

  const room = Math.max(0, ask.limit - before);
  const uses = Math.min(ask.uses, Math.floor(room / ask.cost));
  const isShort = uses < ask.uses && ask.cost <= ask.limit;
  const isWanted = wanted || isShort;
  const stock = isWanted ? 0 : Math.min(ask.stock, Math.floor((room - uses * ask.cost) / 4));
  const nowStocked = inStock + stock + (ask.holds ? uses * ask.cost : 0);

  const counter: Counter = { subject: ask.subject, windowSeconds: ask.windowSeconds };
  const notices: QuotaNotice[] = [];
  if (isShort && inStock > 0 && (ask.callAgain || !wanted)) notices.push({ kind: 'call', ...counter });
  if (wanted && isOfWindow && (ask.handedIn > 0 || ask.unstocked > 0))
    notices.push({ kind: 'returned', ...counter });
  return {
    row: {
      windowStart,
      leased: before + uses * ask.cost + stock,
      stocked: nowStocked,
      wanted: isWanted,
    },
    grant: {
      windowStart,
      msLeft: windowStart * 1000 + lengthMs - nowMs,
      uses,
      stock,
      left: room - uses * ask.cost - stock,
      stocked: nowStocked,
      wanted: isWanted,
    },
    notices,
  };
}
