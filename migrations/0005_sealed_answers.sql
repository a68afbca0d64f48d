-- First answers to requests with an Idempotency-Key, sealed. Generated from src/storage/schema.ts.
-- First answers to requests with an Idempotency-Key, sealed. Generated from src/storage/schema.ts.
CREATE TABLE "sealed_answers" (
	"id" uuid PRIMARY KEY NOT NULL,
	"mac" "bytea" NOT NULL,
	"sealed" "bytea" NOT NULL,
	"created_at" timestamp (3) with time zone NOT NULL,
	CONSTRAINT "sealed_answers_mac_unique" UNIQUE("mac"),
	CONSTRAINT "sealed_answers_mac_form" CHECK (octet_length("sealed_answers"."mac") = 32),
	CONSTRAINT "sealed_answers_sealed_size" CHECK (octet_length("sealed_answers"."sealed") BETWEEN 60 AND 131072)
);
--> statement-breakpoint
CREATE INDEX "sealed_answers_created_at" ON "sealed_answers" USING btree ("created_at");