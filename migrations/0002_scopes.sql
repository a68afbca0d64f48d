-- The scope catalogue. Generated from src/storage/schema.ts.
CREATE TABLE "scopes" (
	"name" text PRIMARY KEY NOT NULL,
	"id" uuid NOT NULL,
	"description" text,
	"implies" text[] NOT NULL,
	"grants" jsonb NOT NULL,
	"created_at" timestamp (3) with time zone NOT NULL,
	"updated_at" timestamp (3) with time zone NOT NULL,
	CONSTRAINT "scopes_id_unique" UNIQUE("id"),
	CONSTRAINT "scopes_name_form" CHECK ("scopes"."name" ~ '^[a-z0-9][a-z0-9_.-]*(:[a-z0-9_.-]+)*$' AND char_length("scopes"."name") <= 64),
	CONSTRAINT "scopes_implies_others" CHECK (cardinality("scopes"."implies") <= 64 AND array_position("scopes"."implies", NULL) IS NULL AND array_position("scopes"."implies", "scopes"."name") IS NULL),
	CONSTRAINT "scopes_grants_form" CHECK (jsonb_typeof("scopes"."grants") = 'array')
);
