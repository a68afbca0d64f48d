ALTER TABLE "rate_windows" ADD COLUMN "nth" integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "rate_windows" ADD COLUMN "granted_uses" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "rate_windows" ADD COLUMN "granted_stock" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "rate_windows" ADD COLUMN "calls" boolean DEFAULT false NOT NULL;--> statement-breakpoint
ALTER TABLE "rate_windows" ADD COLUMN "returns" boolean DEFAULT false NOT NULL;