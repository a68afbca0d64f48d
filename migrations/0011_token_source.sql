-- By which door somebody came who ended a key by its token. Generated from src/storage/schema.ts.
ALTER TABLE "audit_events" ADD COLUMN "source" text;--> statement-breakpoint
CREATE INDEX "audit_events_source_at" ON "audit_events" USING btree ("source","at","id") WHERE "audit_events"."source" IS NOT NULL;