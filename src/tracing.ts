import { createRequire } from 'node:module';
import { FastifyOtelInstrumentation } from '@fastify/otel';
import {
  type Attributes,
  type Context,
  context,
  propagation,
  type TextMapGetter,
  trace,
} from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { ExportResultCode, W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { PgInstrumentation } from '@opentelemetry/instrumentation-pg';
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
} from '@opentelemetry/resources';
import {
  BatchSpanProcessor,
  ParentBasedSampler,
  type ReadableSpan,
  type Sampler,
  SamplingDecision,
  type SpanExporter,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from '@opentelemetry/sdk-trace';
import type { FastifyPluginCallback } from 'fastify';
import { holdsToken } from './domain/token-text.ts';

/*
 * Traces by OpenTelemetry (docs/tracing.md). Imported only where OTEL_EXPORTER_OTLP_ENDPOINT is set, before the first
 * connection to the database is made.
 */

export interface Tracing {
  /** To be registered before all hooks and routes. */
  readonly plugin: FastifyPluginCallback;
  /** Sends what it has, within a second or so. */
  stop(): Promise<void>;
}

export interface TracingOptions {
  /** Where OTLP over HTTP is taken, without `/v1/traces`. */
  readonly endpoint: string;
  readonly version: string;
  /** The share of traces that are kept, 0 to 1, of those that begin here; others are kept if their caller keeps them. */
  readonly sample: number;
  /** Told of what an operator should know: that traces do not arrive, and that they do again. */
  report(event: { readonly message: string; readonly cause?: unknown }): void;
}

const STOP_WITHIN_MS = 1_000;

/**
 * All that leaves in a span: names of ours, and numbers. A URL holds what a client put there; a message of PostgreSQL
 * quotes rows. SQL has parameters where values are.
 */
const ATTRIBUTES = new Set([
  'http.request.method',
  'http.response.status_code',
  'http.route',
  'claviger.request_id',
  'fastify.type',
  'db.system.name',
  'db.namespace',
  'db.operation.name',
  'db.query.text',
  'db.response.status_code',
  'error.type',
  'server.address',
  'server.port',
]);

export function startTracing({ endpoint, version, sample, report }: TracingOptions): Tracing {
  const exporter = new OTLPTraceExporter({ url: `${endpoint.replace(/\/+$/, '')}/v1/traces` });
  const provider = new TracerProvider({
    resource: defaultResource()
      .merge(resourceFromAttributes({ 'service.name': 'claviger', 'service.version': version }))
      // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
      .merge(detectResources({ detectors: [envDetector] })),
    sampler: besideTheLiving(new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(sample) })),
    spanProcessors: [new BatchSpanProcessor({ exporter: withoutSecrets(exporter, report) })],
  });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  propagation.setGlobalPropagator(new CarefulPropagator());
  trace.setGlobalTracerProvider(provider);

  const ofFastify = new FastifyOtelInstrumentation({
    // One span for a request and one for its handler.
    instrumentHooks: false,
    recordExceptions: false,
    requestHook(span, request) {
      span.updateName(`${request.method} ${request.routeOptions.url ?? 'none'}`);
      span.setAttribute('claviger.request_id', request.id);
      // A body's events are the connection's: what is done on them belongs to the request all the same.
      context.bind(trace.setSpan(context.active(), span), request.raw);
    },
    // By itself it would name the source text of the function that the route was registered in.
    lifecycleHook: (span, { hookName }) => span.updateName(hookName),
  });
  const ofPostgres = new PgInstrumentation({
    // Renewals and flushes are nobody's request.
    requireParentSpan: true,
    ignoreConnectSpans: true,
    // Passes the context on, as a comment of each statement that has no name: prepared ones keep their text.
    addSqlCommenterCommentToQueries: true,
  });
  // It takes hold of pg when that is required, also of one that is imported already.
  const requirePg = createRequire(createRequire(import.meta.url).resolve('pg'));
  requirePg('pg-pool');
  requirePg('pg');

  return {
    plugin: ofFastify.plugin(),
    async stop() {
      const late = new Promise<void>((resolve) => setTimeout(resolve, STOP_WITHIN_MS).unref());
      await Promise.race([provider.shutdown().catch(() => undefined), late]);
      ofPostgres.disable();
    },
  };
}

/** W3C trace context, but for a `tracestate` that somebody put a token into: it would be sent with each span. */
class CarefulPropagator extends W3CTraceContextPropagator {
  override extract(into: Context, carrier: unknown, getter: TextMapGetter): Context {
    return super.extract(into, carrier, {
      keys: (from) => getter.keys(from),
      get(from, key) {
        const value = getter.get(from, key);
        return [value].flat().some((text) => text !== undefined && holdsToken(text)) ? undefined : value;
      },
    });
  }
}

/**
 * Keeps nothing that happens under a span that has ended. A timer that a request set goes on under that request's
 * context, and so do all that follow from it: for ever, where each sets the next.
 */
function besideTheLiving(sampler: Sampler): Sampler {
  return {
    shouldSample(parent, ...rest) {
      const span = trace.getSpan(parent);
      const hasEnded = span !== undefined && !span.isRecording() && span.spanContext().isRemote !== true;
      return hasEnded ? { decision: SamplingDecision.NOT_RECORD } : sampler.shouldSample(parent, ...rest);
    },
    toString: () => `BesideTheLiving{${sampler.toString()}}`,
  };
}

/** Exports spans with the attributes of the list above and no text besides; tells when that fails, once. */
function withoutSecrets(exporter: SpanExporter, report: TracingOptions['report']): SpanExporter {
  let isFailing = false;
  return {
    export(spans, done) {
      exporter.export(spans.map(bare), (result) => {
        const failed = result.code !== ExportResultCode.SUCCESS;
        if (failed && !isFailing) report({ message: 'traces cannot be exported' });
        if (!failed && isFailing) report({ message: 'traces are exported again' });
        isFailing = failed;
        done(result);
      });
    },
    shutdown: () => exporter.shutdown(),
    forceFlush: async () => exporter.forceFlush?.(),
  };
}

function bare(span: ReadableSpan): ReadableSpan {
  const attributes: Attributes = {};
  for (const [name, value] of Object.entries(span.attributes)) {
    if (ATTRIBUTES.has(name)) attributes[name] = value;
  }
  return {
    name: span.name,
    kind: span.kind,
    spanContext: () => span.spanContext(),
    ...(span.parentSpanContext && { parentSpanContext: span.parentSpanContext }),
    startTime: span.startTime,
    endTime: span.endTime,
    duration: span.duration,
    ended: span.ended,
    attributes,
    status: { code: span.status.code },
    events: [],
    links: [],
    resource: span.resource,
    instrumentationScope: span.instrumentationScope,
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
  };
}
